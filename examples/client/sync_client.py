"""A flow from nothing to its first answer, and what it then says of itself."""

import sys
import urllib.request

from headrace.client import Client, HeadraceError

ORDER = b"""{"order_id": "O-1", "customer": {"id": "C-100", "name": "Ada"}, "currency": "EUR", "country": "DE",
  "lines": [{"sku": "PUMP-HX2", "quantity": 2}]}"""

with Client() as client:  # finds the mesh of this machine; else Client("host:port")
    try:
        flow = client.apply("examples/orders/flow.yaml").flow  # creates it, and pushes its components
        client.publish("orders", etag=flow.etag)
        client.start("orders", progress=lambda now: print(dict(now.steps)))
        url = client.get_status("orders").webhook_url
        with urllib.request.urlopen(urllib.request.Request(url, ORDER, {"content-type": "application/json"})) as answer:
            print("answer:", answer.read().decode())
        for status in client.watch_status("orders"):  # the present state, then each change
            print("in flight:", {step.step: step.in_flight for step in status.steps})
            if not any(step.waiting + step.in_flight for step in status.steps):
                break
        print(client.stop("orders").message)
    except HeadraceError as error:
        sys.exit(f"{error.reason}: {error.message}. {error.next_step}")
