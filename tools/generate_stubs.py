"""The only caller of protoc: generates `headrace/api` (Python, gRPC and type stubs, and the descriptors with their
comments, which reflection serves) from `protos`.

Path = package = import, so nothing is rewritten. Unchanged inputs are left alone; `--descriptor FILE`
writes a FileDescriptorSet with comments for `buf lint` instead.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "headrace" / "api"
STAMP = TARGET / ".stamp"
COMMENTED = TARGET / "commented.binpb"


def include_paths(scratch: Path, protos: Path) -> list[str]:
    """Folders of imported protos: ours, protoc's own, and googleapis' as shipped in its wheel.

    The wheel ships `operations.proto` under another file name, so it is copied into `scratch`.
    """
    tools = find_spec("grpc_tools")
    google = find_spec("google.longrunning")
    if tools is None or tools.origin is None or google is None or not google.submodule_search_locations:
        sys.exit("generate_stubs: grpcio-tools and googleapis-common-protos are needed; run `make setup`")
    shipped = Path(next(iter(google.submodule_search_locations)))
    renamed = scratch / "google" / "longrunning" / "operations.proto"
    renamed.parent.mkdir(parents=True)
    shutil.copy(shipped / "operations_proto.proto", renamed)
    return [str(protos), str(scratch), str(Path(tools.origin).parent / "_proto"), str(shipped.parent.parent)]


def fingerprint(files: list[Path]) -> str:
    """Hash of all inputs and of the generator versions."""
    digest = hashlib.sha256()
    for package in ("grpcio-tools", "mypy-protobuf"):
        digest.update(metadata.version(package).encode())
    for file in [*files, Path(__file__)]:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run_protoc(arguments: list[str], protos: Path = PROTOS) -> None:
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        includes = [f"-I{path}" for path in include_paths(Path(scratch), protos)]
        if protoc.main(["protoc", *includes, *arguments]) != 0:
            sys.exit("generate_stubs: protoc failed; see the message above")


def generate(files: list[Path]) -> bool:
    """Writes the stubs; answers False when they were up to date."""
    stamp = fingerprint(files)
    if STAMP.exists() and STAMP.read_text() == stamp:
        return False
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    out = str(ROOT)
    run_protoc(
        [
            f"--plugin=protoc-gen-mypy={_plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={_plugin('protoc-gen-mypy_grpc')}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            "--include_source_info",
            f"--descriptor_set_out={COMMENTED}",
            *[str(file) for file in files],
        ]
    )
    for folder in [TARGET, *[path for path in TARGET.rglob("*") if path.is_dir()]]:
        (folder / "__init__.py").touch()
    (TARGET / "py.typed").touch()
    STAMP.write_text(stamp)
    return True


def _plugin(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else (shutil.which(name) or name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--descriptor", metavar="FILE", help="write a FileDescriptorSet with comments instead")
    parser.add_argument("--protos", type=Path, default=PROTOS, help="with --descriptor: folder of the protos")
    arguments = parser.parse_args()
    files = sorted(arguments.protos.resolve().rglob("*.proto"))
    if arguments.descriptor:
        run_protoc(
            [
                "--include_imports",
                "--include_source_info",
                f"--descriptor_set_out={arguments.descriptor}",
                *[str(file) for file in files],
            ],
            arguments.protos.resolve(),
        )
    elif generate(files):
        print(f"generated stubs of {len(files)} protos into {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
