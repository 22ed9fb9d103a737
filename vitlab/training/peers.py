"""What `vitlab bench --against` compares with: the same network in PyTorch, on the same machine."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

import vitlab
from vitlab.errors import InputError, WorkerError
from vitlab.models.detr import DETR
from vitlab.models.mae import MAE
from vitlab.models.resnet import VARIANTS, ResNet
from vitlab.models.vit import ViT
from vitlab.training.setup import Setup

Name = Literal["timm", "torchvision", "hf-detr", "hf-mae"]
What = Literal["train", "inference"]
PACKAGES = {
    "timm": ("torch", "timm"),
    "torchvision": ("torch", "torchvision"),
    "hf-detr": ("torch", "transformers", "scipy"),
    "hf-mae": ("torch", "transformers"),
}
# Fields of a ViT, and the values that a peer has too.
_PLAIN = {
    "stem": ("patch",),
    "mlp": ("gelu", "gelu_tanh"),
    "qkv_bias": ("qkv",),
    "pos_embed": ("learned", "sincos2d", "sincos2d_mae"),
}


def check_packages(name: Name) -> None:
    """Whether this environment has the peer.

    Raises:
        InputError: no; it names what to install.
    """
    missing = [each for each in PACKAGES[name] if not importlib.util.find_spec(each)]
    if missing:
        raise InputError(
            f"--against {name}: {' and '.join(missing)} not found; pip install "
            f"{' '.join(PACKAGES[name])}"
        )


def specification(
    name: Name, setup: Setup, what: What, batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What `vitlab.training.peer_process` builds: a peer of the config's model, for its shapes.

    Images are random and already on the device, as floats, channels first; dropout and stochastic
    depth are the config's. Its optimizer is AdamW, or SGD where the config has that; it clips
    gradients where the config does. Augmentation on the device and the moving average, which the
    config may have, are ours alone.

    Raises:
        InputError: the peer has nothing that is alike, or does not run on this platform.
    """
    platform = jax.default_backend()
    if platform not in ("cpu", "gpu"):
        raise InputError(f"--against {name}: peers run on a CPU or a GPU, not on a {platform}")
    if setup.mesh.size > 1:
        raise InputError(
            f"--against {name}: a peer runs on one device, not on {setup.mesh.size}; "
            "--config.parallelism.mesh.data=1 takes one"
        )
    rows, height, width, channels = batch["image"].shape
    image = (channels, height, width)
    model = setup.task.model
    if name == "hf-mae":
        kind, fields = name, _mae(model, image, setup)
    elif name == "hf-detr":
        kind, fields = name, _detr(model, image, setup)
    elif setup.experiment.task != "classification" or not isinstance(model, ViT | ResNet):
        raise InputError(
            f"--against {name} is for classification with a vit or a resnet, not for "
            f"{setup.experiment.task} with {type(model).__name__}"
        )
    elif isinstance(model, ViT):
        fields = {"timm": _timm_vit, "torchvision": _torchvision_vit}[name](model, image)
        kind = f"{name}-vit"
    else:
        kind, fields = f"{name}-resnet", _resnet(name, model, channels)
    optimizer = setup.experiment.optimizer
    return {
        "kind": kind,
        "what": what,
        "platform": platform,
        "precision": setup.experiment.dtype(),
        "batch": rows,
        "image": image,
        "model": fields,
        "optimizer": optimizer.name,
        "clip_norm": optimizer.clip_norm,
        "objects": int(batch["box_mask"][0].sum()) if "box_mask" in batch else 0,
    }


def _no(name: str, reason: str) -> InputError:
    return InputError(f"--against {name}: its model has no such form: {reason}")


def _plain(name: str, vit: ViT) -> None:
    """Refuses a ViT with parts that peers have not."""
    for field, legal in _PLAIN.items():
        if getattr(vit, field) not in legal:
            raise _no(name, f"config.model.{field} is {getattr(vit, field)!r}")


def _timm_vit(vit: ViT, image: Sequence[int]) -> dict[str, Any]:
    _plain("timm", vit)
    pools = {"cls": "token", "gap": "avg", "map": "map"}
    if vit.pool not in pools:
        raise _no("timm", f"config.model.pool is {vit.pool!r}")
    return {
        "img_size": image[1:],
        "patch_size": vit.patch_size,
        "in_chans": image[0],
        "num_classes": vit.num_classes,
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": vit.mlp_dim / vit.width,
        "global_pool": pools[vit.pool],
        "class_token": vit.class_token,
        "reg_tokens": vit.num_registers,
        "qk_norm": vit.qk_norm,
        "act_layer": vit.mlp,
        "init_values": vit.layer_scale,
        "proj_drop_rate": vit.dropout,
        "drop_path_rate": vit.drop_path,
        "patch_drop_rate": vit.patch_dropout,
    }


def _torchvision_vit(vit: ViT, image: Sequence[int]) -> dict[str, Any]:
    _plain("torchvision", vit)
    plain = (vit.pool, vit.num_registers, vit.qk_norm, vit.layer_scale) == ("cls", 0, False, None)
    if vit.drop_path or vit.patch_dropout or vit.mlp != "gelu":
        raise _no("torchvision", "its model.mlp is gelu, without drop_path and patch_dropout")
    if not plain or image[0] != 3 or image[1] != image[2]:
        raise _no("torchvision", "it has a class token, no extras, and square images of 3 channels")
    return {
        "image_size": image[1],
        "patch_size": vit.patch_size,
        "num_layers": vit.depth,
        "num_heads": vit.num_heads,
        "hidden_dim": vit.width,
        "mlp_dim": vit.mlp_dim,
        "num_classes": vit.num_classes,
        "dropout": vit.dropout,
    }


def _whole_resnet(name: str, resnet: ResNet) -> None:
    widths, depths = (64, 128, 256, 512), VARIANTS[resnet.variant][1]
    whole = resnet.stem == "imagenet" and resnet.widths == widths
    if not whole or (resnet.depths or depths) != depths:
        raise _no(name, "it has the published stem, widths and depths")


def _resnet(name: str, resnet: ResNet, channels: int) -> dict[str, Any]:
    _whole_resnet(name, resnet)
    fields = {"name": f"resnet{resnet.variant}", "num_classes": resnet.num_classes}
    if name == "timm":
        return {**fields, "in_chans": channels}
    if channels != 3:
        raise _no(name, "it has images of 3 channels")
    return fields


def _mae(mae: Any, image: Sequence[int], setup: Setup) -> dict[str, Any]:
    if not isinstance(mae, MAE):
        raise InputError(f"--against hf-mae is for task 'mae', not for {setup.experiment.task!r}")
    vit = mae.backbone
    _plain("hf-mae", vit)
    extras = (vit.num_registers, vit.qk_norm, vit.layer_scale, vit.drop_path, vit.dropout)
    if image[1] != image[2] or not vit.class_token or any(extras):
        raise _no("hf-mae", "it has square images, a class token, no registers and no extras")
    return {
        "image_size": image[1],
        "patch_size": vit.patch_size,
        "num_channels": image[0],
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": vit.mlp_dim,
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[vit.mlp],
        "decoder_hidden_size": mae.decoder_width,
        "decoder_num_hidden_layers": mae.decoder_depth,
        "decoder_num_attention_heads": mae.decoder_heads,
        "decoder_intermediate_size": 4 * mae.decoder_width,
        "mask_ratio": mae.mask_ratio,
        "norm_pix_loss": setup.task.loss_config.norm_pix,
    }


def _detr(detr: Any, image: Sequence[int], setup: Setup) -> dict[str, Any]:
    if not isinstance(detr, DETR) or not isinstance(detr.backbone, ResNet):
        raise InputError("--against hf-detr is for config.model.name 'detr' with a resnet")
    resnet = detr.backbone
    _whole_resnet("hf-detr", resnet)
    bottleneck, depths = VARIANTS[resnet.variant]
    return {
        "backbone": {
            "num_channels": image[0],
            "depths": depths,
            "hidden_sizes": [(4 if bottleneck else 1) * width for width in resnet.widths],
            "layer_type": "bottleneck" if bottleneck else "basic",
        },
        "num_channels": image[0],
        "num_classes": len(setup.classes),
        "num_queries": detr.num_queries,
        "d_model": detr.width,
        "encoder_layers": detr.encoder_layers,
        "decoder_layers": detr.decoder_layers,
        "encoder_attention_heads": detr.num_heads,
        "decoder_attention_heads": detr.num_heads,
        "encoder_ffn_dim": detr.mlp_dim,
        "decoder_ffn_dim": detr.mlp_dim,
        "dropout": detr.dropout,
        "activation_dropout": detr.dropout,
    }


class Peer:
    """A peer's step in a process of its own, with its own threads and memory. Between two requests
    it waits on a pipe. A context, which ends the process.

    Args:
        name: of the peer, for errors.
        spec: see `specification`.
        command: what to run.

    Attributes:
        about: `parameters`, `form` (`eager` or `torch.compile`), `optimizer`, `threads`.

    Raises:
        WorkerError: the peer cannot be built, or fails later.
    """

    command = (sys.executable, "-m", "vitlab.training.peer_process")

    def __init__(self, name: Name, spec: Mapping[str, Any], command: Sequence[str] = command):
        self._name = name
        root = str(pathlib.Path(vitlab.__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # With random weights nobody needs the hub.
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 until `close`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            self.about: dict[str, Any] = self._ask(json.dumps(spec))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def seconds(self, steps: int) -> float:
        """Of a step, of so many."""
        return self._ask(str(steps))["seconds"] / steps

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, line: str) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # the reason is on standard error
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        found = json.loads(answer) if answer else {"error": self._last_words()}
        if "error" in found:
            reason = " ".join(found["error"].split())[:300]
            raise WorkerError(f"--against {self._name}: the peer failed: {reason}")
        return found

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"it ended with {code}"


def versions(name: Name) -> dict[str, str]:
    """Of the packages that the peer is made of."""
    return {each: importlib.metadata.version(each) for each in PACKAGES[name]}
