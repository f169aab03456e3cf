"""Wires what has to do with credentials, with components that are asked or tried, and with stimuli."""

from __future__ import annotations

from headrace.api.credential.v1 import credential_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.key_ring import KeyRing
from headrace.edge.request_book import RequestBook
from services.orchestrator.credential_check import CredentialCheck
from services.orchestrator.credential_refresh import CredentialRefresher
from services.orchestrator.letter_work import LetterWorker
from services.orchestrator.rpc_credential import SERVICE_NAME, CredentialRpc
from services.orchestrator.rpc_diagnosis import DiagnosisRpc
from services.orchestrator.rpc_step import add_steps
from services.orchestrator.rpc_stimulus import add_stimuli
from services.orchestrator.trials import Trials
from services.orchestrator.wall_clock import WallClock


def add_trial_services(
    server: GrpcServer,
    trials: Trials,
    letters: LetterWorker,
    requests: RequestBook,
    ring: KeyRing,
    why: DiagnosisRpc,
) -> None:
    """Serves them; `why` asks components about their credentials from now on."""
    add_steps(server, trials, letters)
    add_stimuli(server, letters.stores, letters.sender.stimuli, letters.sender.starts, requests)
    store = trials.credentials
    refresher = CredentialRefresher(store, trials.reader, trials.observer)
    check = CredentialCheck(store, trials)
    rpc = CredentialRpc(store, ring, requests, refresher, check, WallClock())
    server.add(credential_pb2_grpc.add_CredentialServiceServicer_to_server, rpc, SERVICE_NAME)
    why.ask_credential = check.of_step
