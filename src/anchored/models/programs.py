"""Models that are files to run, not modules: ONNX (through ONNX Runtime) and programs of ``torch.export``."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anchored.errors import UserError, first_line
from anchored.models.checkpoint import load_plainly
from anchored.models.export import import_onnxruntime, require_packages
from anchored.store.files import digest, read_bytes, refuse_special

ENDINGS = (".onnx", ".pt2")

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Program:
    """A program: what it takes, what else its file says, and how it is run.

    Called with images as it takes them, (B,C,H,W) of any B, it gives logits (B,N), or, where it has several outputs,
    all of them by name, ``logits`` among them. On the CPU.
    """

    path: Path
    shape: tuple[int | None, ...]
    """(B,C,H,W) of its input, None where it is free."""
    pixels: bool
    """Whether it takes uint8, else floats."""
    text: Mapping[str, str]
    """Metadata of the file."""
    digest: str
    """Of the file, and of the weights beside an ONNX file."""
    execute: Callable[[Tensor], Outputs] = field(repr=False)

    def __call__(self, images: Tensor) -> Tensor | Outputs:
        """Run it, in batches of the size that it was made for, where it has one; the last one is filled up."""
        fixed, count = self.shape[0], len(images)
        if fixed is None:
            outputs = self.execute(images)
        else:
            filled = images[torch.arange(-(-count // fixed) * fixed).clamp(max=count - 1)]
            runs = [self.execute(part) for part in torch.split(filled, fixed)]
            outputs = {name: torch.cat([run[name] for run in runs])[:count] for name in runs[0]}
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        if "logits" not in outputs:
            raise UserError(f"{self.path} has the outputs {', '.join(outputs)}: name the one with the logits 'logits'")
        return outputs


def open_program(path: Path) -> Program:
    """The program in a file; ``UserError`` where it cannot be read, or takes anything but one batch of images.

    A ``.pt2`` file is code, which the caller trusts by naming it; what would have to be unpickled in it is refused.
    """
    refuse_special(path)
    program = (_open_onnx if path.suffix.lower() == ".onnx" else _open_pt2)(path)
    if len(program.shape) != 4:
        raise UserError(f"{path} takes an input of {len(program.shape)} dimensions: images have four, (B,C,H,W)")
    return program


def _open_onnx(path: Path) -> Program:
    require_packages("onnxruntime")
    runtime, content = import_onnxruntime(), read_bytes(path)
    try:
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever ONNX Runtime raises
        raise UserError(f"{path} is not a model that ONNX Runtime can run: {first_line(error)}") from error
    if len(session.get_inputs()) != 1:
        raise UserError(f"{path} takes {len(session.get_inputs())} inputs: only models of one batch of images are run")
    taken, names = session.get_inputs()[0], [output.name for output in session.get_outputs()]
    types = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
    if taken.type not in types:
        raise UserError(f"{path} takes a {taken.type}: only uint8, float and float16 images are given")
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in taken.shape)
    last = len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)  # channels last, as TensorFlow exports

    def execute(images: Tensor) -> Outputs:
        array = images.cpu().numpy().astype(types[taken.type], copy=False)
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if last else array
        try:
            found = session.run(names, {taken.name: array})
        except Exception as error:  # whatever ONNX Runtime raises
            raise UserError(f"{path} does not take images {tuple(images.shape)}: {first_line(error)}") from error
        return {name: torch.from_numpy(np.asarray(each)).float() for name, each in zip(names, found, strict=True)}

    hashed = digest(content + b"".join(read_bytes(path.parent / name) for name in _external_data(content)))
    shape = (shape[0], shape[3], *shape[1:3]) if last else shape
    metadata = session.get_modelmeta().custom_metadata_map
    return Program(path, shape, types[taken.type] is np.uint8, metadata, hashed, execute)


def _external_data(content: bytes) -> list[str]:
    """Names of the files that an ONNX model keeps weights in, below its folder: its entries ``location``.

    An entry is two fields of text, key and value (onnx.proto, StringStringEntryProto): a tag, a length, the bytes.
    """
    found = {
        content[at.end() : at.end() + at[1][0]] for at in re.finditer(rb"\n\x08location\x12([\x01-\x7f])", content)
    }
    return sorted(name.decode("utf-8", "replace") for name in found)


def _open_pt2(path: Path) -> Program:
    _refuse_objects(path)
    text = {"anchored": ""}
    try:
        program = torch.export.load(path, extra_files=text)
    except Exception as error:  # whatever torch raises
        raise UserError(f"{path} is not a program that this torch can run: {first_line(error)}") from error
    given = set(program.graph_signature.user_inputs)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in given]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise UserError(f"{path} takes {len(inputs)} inputs: only programs of one batch of images are run")
    module, dtype = program.module(), inputs[0].dtype
    shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)

    def execute(images: Tensor) -> Outputs:
        try:
            with torch.inference_mode():
                found = module(images.to("cpu", dtype))
        except Exception as error:  # whatever torch raises
            raise UserError(f"{path} does not take images {tuple(images.shape)}: {first_line(error)}") from error
        named = found if isinstance(found, Mapping) else {"logits": found}
        if not all(isinstance(each, Tensor) for each in named.values()):
            raise UserError(f"{path} gives a {type(found).__name__}: a tensor of logits, or a dict with one, is read")
        return {name: each.float() for name, each in named.items()}

    return Program(path, shape, dtype == torch.uint8, text, digest(read_bytes(path)), execute)


def _refuse_objects(path: Path) -> None:
    """``UserError`` for a program whose file holds more than a graph and tensors: torch would unpickle that."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            compiled = any("aotinductor" in name for name in names)
            objects = any("custom_obj" in name and not name.endswith(".json") for name in names)
            described = [json.loads(archive.read(name)) for name in names if name.endswith(".json")]
            for name in names:
                if name.endswith(".pt") and archive.getinfo(name).file_size:
                    load_plainly(io.BytesIO(archive.read(name)))
    except Exception as error:  # a damaged archive, or what torch's reader for weights alone does not take
        raise UserError(f"{path} is not a whole program of torch.export ({first_line(error)})") from error
    if compiled or objects or len(set(names)) < len(names) or any(map(_pickled, described)):
        what = "compiled code" if compiled else "objects besides its graph and tensors"
        raise UserError(f"{path} holds {what}, which is not read: export the plain network with torch.export.save")


def _pickled(node: Any) -> bool:
    """Whether a description says, at any depth, that something is pickled."""
    if isinstance(node, dict):
        return bool(node.get("use_pickle")) or any(map(_pickled, node.values()))
    return isinstance(node, list) and any(map(_pickled, node))
