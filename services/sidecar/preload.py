"""Imports what a sidecar imports late: for a preloaded parent, which does all of it before it forks."""

from __future__ import annotations

import resource  # noqa: F401

import msgspec
import uvloop  # noqa: F401

import headrace.api.component.v1.component_pb2_grpc
import headrace.api.sidecar.v1.sidecar_pb2_grpc
import headrace.edge.faulty_component_stream
import headrace.edge.faulty_lane
import headrace.edge.grpc_channel
import headrace.edge.grpc_environment
import headrace.edge.grpc_server
import headrace.edge.hop_recorder
import headrace.edge.http2_component_stream
import headrace.edge.jetstream_lane
import headrace.edge.kv_bucket
import headrace.edge.metrics_responder
import headrace.edge.nats_connection
import headrace.edge.nats_echo
import headrace.edge.otlp_channel
import headrace.edge.span_export
import headrace.edge.tracing  # noqa: F401
import services.sidecar.broker_epoch
import services.sidecar.careful_start
import services.sidecar.data_plane
import services.sidecar.examination
import services.sidecar.instance
import services.sidecar.lifecycle_rpc
import services.sidecar.reclaim  # noqa: F401
from headrace.model.deployment import DeploymentPlan, DeploymentState
from headrace.model.sampling import Sampling

for _document in (DeploymentPlan, DeploymentState, Sampling):
    # What its types say is worked out once (5 ms) and kept with them.
    msgspec.json.Decoder(_document)
