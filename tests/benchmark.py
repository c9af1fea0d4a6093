"""A stand-in for NAS-Bench-301's files: the same inputs and outputs, a linear model of our own."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pdarts_tune.evaluation.estimates import CATEGORIES

OPERATIONS = ("avg_pool_3x3", "dil_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "skip_connect")
PAIRS = {state: [f"{one}_{other}" for one in range(state) for other in range(one + 1, state)] for state in (3, 4, 5)}
ENCODING = {
    name: {value: code for code, value in enumerate(["#na#", *(OPERATIONS if "edge" in name else PAIRS[int(name[-1])])])}
    for name in CATEGORIES
}
WEIGHTS = np.stack([np.linspace(0.01, 0.1, len(CATEGORIES)), np.linspace(1, 9, len(CATEGORIES))], axis=1).astype(np.float32)
PER_EPOCH = np.array([[0.5, 60.0]], dtype=np.float32)


def write_benchmark(folder, categories=34, kind=TensorProto.INT32, scale=1.0):
    """`model.onnx`, which gives codes @ WEIGHTS + epoch * PER_EPOCH, and `encoding.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Cast", ["codes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["numbers", "weights"], ["cell"]),
        helper.make_node("MatMul", ["epoch", "per_epoch"], ["length"]),
        helper.make_node("Add", ["cell", "length"], ["figures"]),
    ]
    inputs = [
        helper.make_tensor_value_info("codes", kind, ["n", categories]),
        helper.make_tensor_value_info("epoch", TensorProto.FLOAT, ["n", 1]),
    ]
    outputs = [helper.make_tensor_value_info("figures", TensorProto.FLOAT, ["n", 2])]
    tensors = {"weights": scale * WEIGHTS[:categories], "per_epoch": PER_EPOCH}
    values = [numpy_helper.from_array(tensor.astype(np.float32), name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "stand-in", inputs, outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "encoding.json").write_text(json.dumps(ENCODING))
    return f"nb301:{folder}"


def expected(codes, epoch=98):
    """Accuracy as a fraction, and seconds."""
    percent, seconds = np.asarray(codes, dtype=np.float32) @ WEIGHTS + epoch * PER_EPOCH[0]
    return percent / 100, seconds
