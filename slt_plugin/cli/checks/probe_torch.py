"""Run in a child of ``slt-doctor``: what torch can do on the first GPU, or on the CPU where there is none.

Prints one JSON object a line, each as soon as it is known, so that a crash leaves what came before.
"""

import json
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPE = (2, 4, 256, 64)  # batch, heads, steps, channels of a head
TOLERANCE = 2e-2  # of attention in bfloat16 against float32
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def build() -> dict:
    """What this torch was compiled for."""
    flags = torch._C._cuda_getArchFlags() if hasattr(torch._C, "_cuda_getArchFlags") else None
    return {"version": torch.__version__, "cuda": torch.version.cuda, "architectures": (flags or "").split()}


def nccl() -> dict:
    available = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {"version": ".".join(map(str, torch.cuda.nccl.version())) if available else None}


def kernel() -> dict:
    """One operation; memory in bytes."""
    torch.zeros(1, device="cuda").add_(1).item()
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    return {"count": torch.cuda.device_count(), "capability": capability, "free": free, "total": total}


def bfloat16() -> dict:
    x = torch.randn(64, 64, device="cuda")
    error = (x.bfloat16() @ x.bfloat16()).float().sub(x @ x).abs().max().item()
    return {"native": torch.cuda.is_bf16_supported(including_emulation=False), "error": error}


def attention(device: str) -> dict:
    """Which fused kernels give the right result: kernel -> None, or why not. On the CPU: the plain one alone."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(SHAPE, device=device) for _ in range(3))
    expected = torch.softmax(query @ key.transpose(-1, -2) / SHAPE[-1] ** 0.5, dim=-1) @ value
    if device == "cpu":
        return {"kernels": {"plain": _difference(scaled_dot_product_attention(query, key, value), expected)}}
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    half = [x.to(torch.bfloat16 if native else torch.float16) for x in (query, key, value)]
    outcome = {}
    for name, backend in KERNELS.items():
        try:
            with sdpa_kernel(backend):
                outcome[name] = _difference(scaled_dot_product_attention(*half).float(), expected)
        except RuntimeError as error:
            outcome[name] = str(error).splitlines()[0]
    return {"kernels": outcome}


def _difference(result: torch.Tensor, expected: torch.Tensor) -> str | None:
    worst = (result - expected).abs().max().item()
    return None if worst <= TOLERANCE else f"wrong by {worst:.3g}"  # nan too


def report(name: str, probe: Callable[..., dict], *arguments: str) -> None:
    try:
        fact = probe(*arguments)
    except Exception as error:  # noqa: BLE001  whatever the driver raises is the finding
        fact = {"problem": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    print(json.dumps({"fact": name, **fact}), flush=True)


def main() -> None:
    report("build", build)
    report("nccl", nccl)
    if torch.cuda.device_count() == 0 and not torch.cuda.is_available():
        report("attention", attention, "cpu")
        return
    report("kernel", kernel)
    report("bfloat16", bfloat16)
    report("attention", attention, "cuda")


if __name__ == "__main__":
    main()
