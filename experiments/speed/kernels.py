"""The kernels that XLA would make of a config's training step on an H200, without one.

    python experiments/speed/kernels.py CONFIG [KEY=VALUE ...]

with `jax[cuda13]` of version 0.11.2 installed. XLA compiles for a GPU that it is only told about.
Matrix products and attention are cuBLAS's and cuDNN's; all else is bound by memory, so bytes read
and written say what it costs: these kernels reach about 3.0 GB a millisecond on an H200 (gpu.md).
Nothing is tuned, as that needs the GPU.
"""

import collections
import os
import re
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
import jax  # noqa: E402
import jax._src.cudnn.fused_attention_stablehlo as cudnn  # noqa: E402
import jax._src.xla_bridge as xla_bridge  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from vitlab import config as config_lib  # noqa: E402
from vitlab.ops import attention  # noqa: E402
from vitlab.training import benchmark_data  # noqa: E402
from vitlab.training.setup import CUBLAS  # noqa: E402

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 149929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 15 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1}
NO_KERNEL = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")


def pretend():
    """That there is an H200, where JAX and vitlab ask."""
    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: (
        "cuda" if name in ("gpu", "cuda") else known(name)
    )
    jax.default_backend = lambda: "gpu"
    attention._has_cudnn = lambda: True
    cudnn.check_cudnn_version = lambda: 91500
    cudnn.check_compute_capability = lambda capability: float(capability) <= 9
    cudnn.is_cuda_compute_capability_equal = lambda capability: False


def size(shapes):
    found = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    total = 0
    for dtype, sides in found:
        number = BYTES.get(dtype, 0)
        for side in filter(None, sides.split(",")):
            number *= int(side)
        total += number
    return total


def kernels(hlo):
    """What runs, as (name, what it makes, bytes, the operation in the model)."""
    shapes = {}
    for line in hlo[hlo.index("\nENTRY ") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)", line)
        if not found:
            continue
        name, made, kind, rest = found.groups()
        shapes[name] = made
        if kind in NO_KERNEL:
            continue
        read = set(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
        moved = sum(size(shapes.get(each, "")) for each in read)
        library = re.search(r'custom_call_target="__(cu\w+)', rest)
        name = library[1] if library else re.sub(r"[.\d]+$", "", name)
        operation = (re.search(r'op_name="([^"]*)"', rest) or ["", ""])[1]
        made = re.sub(r"\{[^}]*\}|[su]8\[\d+\]", "", made)
        yield name, made, moved + size(made), re.sub(r"_\d+", "", operation)[-70:]


def main():
    config, *changed = sys.argv[1:]
    changed = [tuple(each.split("=", 1)) for each in changed]
    changed += [("data.workers", "0"), ("precision", "bfloat16")]
    setup, _ = benchmark_data.prepare(config_lib.load(config, changed), "synthetic", print)
    pretend()
    gpu = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    mesh = jax.sharding.Mesh(gpu.devices, ("device",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state, batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        (setup.target, setup.batch),
    )
    traced = jax.jit(setup._step, donate_argnums=0).trace(state, batch)
    lowered = traced.lower(lowering_platforms=("cuda",))
    hlo = lowered.compile({**CUBLAS, "xla_gpu_autotune_level": 0}).as_text()
    moved, times = collections.Counter(), collections.Counter()
    for name, made, number, operation in kernels(hlo):
        times[name, made, operation] += 1
        moved[name, made, operation] += number
    for library in ("cublas", "cudnn", ""):
        of_it = {k: v for k, v in moved.items() if k[0][:6] == library or not library}
        print(f"{library or 'all'}: {sum(times[k] for k in of_it)} kernels", end=", ")
        print(f"{sum(of_it.values()) / 1e9:.2f} GB")
    for key, number in moved.most_common(40):
        print(f"{number / 1e9:7.3f} GB {times[key]:4} x {key[0]:32} {key[1][:70]:70} {key[2]}")


main()
