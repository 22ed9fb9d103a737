"""The other side of `vitlab.training.peers`: a peer's step in a process of its own.

    python -m vitlab.training.peer_process

reads what to build as one line of JSON, then numbers of steps, and answers each with a line. It
imports nothing of JAX, and of the peers (timm, torchvision, transformers) what it is asked for;
their models get random weights, and the hub is never asked.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

# Idle threads of OpenMP spin for up to 0.2 s before they sleep.
_REST = 0.3

Step = Callable[[int], float]


def main() -> None:
    """Serves the peer on standard input and output."""
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(build, sys.stdin, answers)


def serve(
    make: Callable[[dict[str, Any]], tuple[dict[str, Any], Step]],
    requests: Iterable[str],
    answers: TextIO,
    rest: float = _REST,
) -> None:
    """Answers until there are no more requests.

    Args:
        make: from the first request to what is known of the peer, and the function that takes a
            step, then so many more, and gives the seconds that these took.
        requests: a line of JSON, then lines with a number of steps.
        answers: gets a line of JSON for each; `{"error": ...}` ends it.
        rest: seconds of sleep before an answer, until threads that spin have gone to sleep too.
    """

    def answer(value):
        time.sleep(rest)
        print(json.dumps(value), file=answers, flush=True)

    requests = iter(requests)
    try:
        about, run = make(json.loads(next(requests)))
        answer(about)
        for line in requests:
            answer({"seconds": run(int(line))})
    except Exception as error:  # whatever a peer may raise
        answer({"error": f"{type(error).__name__}: {error}"})


def build(spec: dict[str, Any]) -> tuple[dict[str, Any], Step]:
    """A peer's training step or forward pass; see `vitlab.training.peers.specification`."""
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}[spec["platform"]]
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU")
    torch.set_float32_matmul_precision("high")
    model = _MODELS[spec["kind"]](spec["model"])
    parameters = sum(each.numel() for each in model.parameters())
    model = model.to(device)
    convolutional = any(isinstance(each, torch.nn.BatchNorm2d) for each in model.modules())
    images = torch.randn(spec["batch"], *spec["image"], device=device)
    if device == "cuda" and convolutional:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    training = spec["what"] == "train"
    model.train(training)
    call = _call(spec, images) if training else lambda model: model(images)
    compiled = torch.compile(model) if device == "cuda" else model
    half = torch.autocast(device, torch.bfloat16, enabled=spec["precision"] == "bfloat16")
    learned = [each for each in model.parameters() if each.requires_grad]
    optimizer = _optimizer(spec["optimizer"], learned) if training else None

    def step():
        if optimizer is None:
            with torch.inference_mode(), half:
                call(compiled)
            return
        optimizer.zero_grad(set_to_none=True)
        with half:
            loss = call(compiled)
        loss.backward()
        if spec["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(learned, spec["clip_norm"])
        optimizer.step()

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def run(steps):
        step()
        wait()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return time.perf_counter() - began

    run(1)
    about = {
        "parameters": parameters,
        "form": "torch.compile" if device == "cuda" else "eager",
        "optimizer": type(optimizer).__name__ if training else None,
        "threads": torch.get_num_threads(),
    }
    return about, run


def _call(spec: dict[str, Any], images: Any) -> Callable[[Any], Any]:
    """From a model to the loss of the batch."""
    import torch

    device, rows = images.device, len(images)
    if spec["kind"] == "hf-mae":
        return lambda model: model(images).loss
    classes = spec["model"]["num_classes"]
    if spec["kind"] == "hf-detr":
        number = spec["objects"]
        labels = [
            {
                "class_labels": torch.randint(0, classes, (number,), device=device),
                "boxes": 0.1 + 0.3 * torch.rand(number, 4, device=device),
            }
            for _ in range(rows)
        ]
        return lambda model: model(images, labels=labels).loss
    labels = torch.randint(0, classes, (rows,), device=device)
    return lambda model: torch.nn.functional.cross_entropy(model(images).float(), labels)


def _optimizer(name: str, parameters: list[Any]) -> Any:
    import torch

    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True)
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)


def _timm_vit(fields: dict[str, Any]) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**fields)


def _timm_resnet(fields: dict[str, Any]) -> Any:
    import timm

    return timm.create_model(fields.pop("name"), pretrained=False, **fields)


def _torchvision_vit(fields: dict[str, Any]) -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(**fields)


def _torchvision_resnet(fields: dict[str, Any]) -> Any:
    from torchvision.models import get_model

    return get_model(fields["name"], weights=None, num_classes=fields["num_classes"])


def _hf_mae(fields: dict[str, Any]) -> Any:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(ViTMAEConfig(**fields))


def _hf_detr(fields: dict[str, Any]) -> Any:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    fields = dict(fields)
    backbone = ResNetConfig(**fields.pop("backbone"), out_features=["stage4"])
    labels = fields.pop("num_classes")
    return DetrForObjectDetection(
        DetrConfig(backbone_config=backbone, num_labels=labels, auxiliary_loss=True, **fields)
    )


_MODELS = {
    "timm-vit": _timm_vit,
    "timm-resnet": _timm_resnet,
    "torchvision-vit": _torchvision_vit,
    "torchvision-resnet": _torchvision_resnet,
    "hf-mae": _hf_mae,
    "hf-detr": _hf_detr,
}

if __name__ == "__main__":
    main()
