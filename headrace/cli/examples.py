"""An example or two for every command, shown at the end of its help. A test parses each of them."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, tuple[str, ...]] = {
    "up": (
        "headrace up",
        "headrace up --detach",
        "headrace up --profile fast --data /var/lib/headrace",
        "headrace up --otlp http://127.0.0.1:4317",
    ),
    "down": ("headrace down",),
    "status": ("headrace status", "headrace status --json"),
    "health": ("headrace health", "headrace health orders --wait 30", "headrace health --address 127.0.0.1:7400"),
    "doctor": ("headrace doctor", "headrace doctor --json"),
    "dev": ("headrace dev price", "headrace dev orders.yaml --no-logs"),
    "component new": ("headrace component new price",),
    "component push": ("headrace component push ./price", "headrace component push ./price --tag stable"),
    "component list": ("headrace component list",),
    "component show": ("headrace component show price",),
    "component upgrade": ("headrace component upgrade orders --component price",),
    "component delete": ("headrace component delete price@3", "headrace component delete price --yes"),
    "component gc": ("headrace component gc", "headrace component gc price --yes"),
    "flow apply": ("headrace flow apply orders.yaml", "headrace flow apply price --run"),
    "flow validate": ("headrace flow validate orders.yaml", "headrace flow validate orders.yaml --local"),
    "flow publish": ("headrace flow publish orders", "headrace flow publish orders --strategy restart"),
    "flow start": ("headrace flow start orders", "headrace flow start orders --version 2"),
    "flow restart": ("headrace flow restart orders",),
    "flow rollback": ("headrace flow rollback orders 2",),
    "flow stop": ("headrace flow stop orders", "headrace flow stop orders --drop --yes"),
    "flow suspend": ("headrace flow suspend orders --max-time 2h",),
    "flow resume": ("headrace flow resume orders",),
    "flow scale": ("headrace flow scale orders price=4",),
    "flow refresh-credentials": (
        "headrace flow refresh-credentials orders",
        "headrace flow refresh-credentials orders --step ship",
    ),
    "flow cancel": ("headrace flow cancel orders",),
    "flow drain-choice": ("headrace flow drain-choice orders move --deployment 3",),
    "flow history": ("headrace flow history orders", "headrace flow history"),
    "flow status": ("headrace flow status orders", "headrace flow status orders --policy"),
    "flow list": ("headrace flow list",),
    "flow show": ("headrace flow show orders",),
    "flow graph": ("headrace flow graph orders", "headrace flow graph orders.yaml --format mermaid"),
    "flow diff": ("headrace flow diff orders.yaml", "headrace flow diff orders --from 1 --to 2"),
    "flow versions": ("headrace flow versions orders",),
    "flow draft": ("headrace flow draft orders --from 2",),
    "flow set-type": ("headrace flow set-type orders ordinary",),
    "flow delete": ("headrace flow delete orders",),
    "flow delete-version": ("headrace flow delete-version orders 2",),
    "top": ("headrace top", "headrace top orders", "headrace top orders --once --sort p99", "headrace top --json"),
    "schema": ("headrace schema flow", "headrace schema component --output component.schema.json"),
    "flow run-now": ("headrace flow run-now reports",),
    "inject": (
        """headrace inject orders '{"order_id": "O-1"}'""",
        "headrace inject orders --file order.json",
        "headrace inject orders '{}' --attach scan.pdf",
        "headrace inject orders --lines orders.jsonl --request-id monday",
    ),
    "logs": ("headrace logs orders --follow", "headrace logs orders --step price --since 10m --level warning"),
    "why": ("headrace why orders", "headrace why orders/price --json"),
    "trace": (
        "headrace trace",
        "headrace trace --flow orders --where 'step=price AND error=true'",
        "headrace trace 9f86d081884c7d659a2feaa0c55ad015",
    ),
    "flow trace": (
        "headrace flow trace orders",
        "headrace flow trace orders --ratio 0.01",
        "headrace flow trace orders --next 10 --where 'step=price'",
    ),
    "dead-letters list": ("headrace dead-letters list", "headrace dead-letters list orders --step price --follow"),
    "credential create": (
        "headrace credential create shop --from shop.json",
        "headrace credential create shop --from - --expires 2027-01-31",
    ),
    "credential list": ("headrace credential list",),
    "credential show": ("headrace credential show shop",),
    "credential update": ("headrace credential update shop --from shop.json",),
    "credential delete": ("headrace credential delete shop --yes",),
    "credential verify": (
        "headrace credential verify shop",
        "headrace credential verify shop --component shop@3",
    ),
    "step run": (
        "headrace step run orders price --input order.json",
        "headrace step run orders --dead-letter 7",
        "headrace step run orders price --draft --input order.json --json",
    ),
    "step metadata": ("headrace step metadata orders price",),
    "step select-model": ("headrace step select-model orders price tables",),
    "credential new-key": ("headrace credential new-key",),
    "credential reseal": ("headrace credential reseal",),
    "stimuli list": ("headrace stimuli list orders", 'headrace stimuli list orders --since 2h --text "o-17"'),
    "stimuli show": ("headrace stimuli show orders 17",),
    "stimuli replay": ("headrace stimuli replay orders 17", "headrace stimuli replay orders 17 18 --dry-run"),
    "snapshot show": ("headrace snapshot show orders", "headrace snapshot show orders count --key a1"),
    "snapshot reset": ("headrace snapshot reset orders count", "headrace snapshot reset orders count --key a1 --yes"),
    "dead-letters show": ("headrace dead-letters show orders 7", "headrace dead-letters show orders 7 --save letter-7"),
    "dead-letters edit": (
        "headrace dead-letters edit orders 7 --set /customer=17",
        "headrace dead-letters edit orders 7 --body corrected.json",
        "headrace dead-letters edit orders 7 --revert",
    ),
    "dead-letters replay": (
        "headrace dead-letters replay orders 7 8",
        "headrace dead-letters replay orders --all --reason TIMEOUT --since 2h --dry-run",
    ),
    "dead-letters discard": ("headrace dead-letters discard orders 7",),
    "dead-letters in-doubt": ("headrace dead-letters in-doubt orders",),
    "demo": ("headrace demo --once",),
    "bench run": ("headrace bench", """headrace bench orders --body '{"order_id": "O-1"}' --rate 50"""),
    "bench compare": ("headrace bench compare before.json build/bench.json",),
    "rpc": (
        """headrace rpc FlowService/GetFlowStatus '{"name": "flows/orders"}'""",
        "headrace rpc list",
        "headrace rpc describe headrace.api.flow.v1.FlowService.StartFlow",
        "headrace rpc TailLogs @ --max-time 10 < request.json",
    ),
    "completion": (
        "headrace completion bash > ~/.local/share/bash-completion/completions/headrace",
        "headrace completion zsh > ~/.zfunc/_headrace    # with fpath+=~/.zfunc before compinit in ~/.zshrc",
        "headrace completion fish > ~/.config/fish/completions/headrace.fish",
    ),
}


def add_examples(command: Any, path: str) -> None:
    """Puts the examples of a command, and of all commands below it, at the end of their help."""
    for name, below in getattr(command, "commands", {}).items():
        add_examples(below, f"{path} {name}")
    if path in EXAMPLES:
        # \b: the help's lines are kept as they are.
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[path])
