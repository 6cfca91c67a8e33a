"""The device and the model: everything `load_backbone` asks for, and a first pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2m_service.doctor.finding import Finding, Patient, ok, problem, size, warning

if TYPE_CHECKING:
    import torch

# torch and transformers are imported in the functions: where they are broken, that is a finding.


def check_device(patient: Patient) -> Finding:
    """Whether the device is there and computes."""
    import torch

    from r2m_service.modeling.loading import ModelRefusedError, pick_device

    asked = patient.settings.device
    try:
        device = pick_device(asked)
    except ModelRefusedError as error:
        mend = "set --device auto or cpu"
        if asked.startswith("cuda"):
            mend += ", or install a CUDA build of torch and the driver (nvidia-smi shows it)"
        return problem("device", str(error), mend)
    patient.device = device
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return ok("device", f"{device}: {name}, {size(free)} of {size(whole)} free")
    gpu = "" if device.type != "cpu" or torch.cuda.is_available() else ", no CUDA"
    return ok("device", f"{device}{gpu}")


def check_dtype(patient: Patient) -> Finding | None:
    """Whether the device computes in the backbone's dtype, and well."""
    if patient.device is None:
        return None
    import torch

    from r2m_service.modeling.loading import DTYPES, pick_dtype

    kind = pick_dtype(patient.settings.dtype, patient.device)
    one = torch.ones(8, 8, dtype=DTYPES[kind], device=patient.device)
    if not bool(torch.isfinite(one @ one).all()):
        return problem("dtype", f"{patient.device} computes wrongly in {kind}", "set --dtype")
    patient.dtype = kind
    if patient.device.type == "cpu" and kind == "float16":
        return warning(
            "dtype", "float16 on a CPU is slow, and overflows early", "set --dtype float32"
        )
    if kind == "bfloat16" and not _has_bfloat16(patient.device):
        return warning(
            "dtype",
            f"{patient.device} has no bfloat16 of its own: slow",
            "set --dtype float16 or float32",
        )
    return ok("dtype", f"{kind} on {patient.device}")


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def check_model(patient: Patient) -> Finding:
    """Whether the model is there and of a kind that is served; its weights are not read."""
    from r2m_service.modeling.checkpoint_files import ModelRefusedError
    from r2m_service.modeling.checkpoints import Kind, inspect_checkpoint, named

    settings = patient.settings
    if settings.head is not None and not settings.head.is_file():
        return problem("model", f"no head file at {settings.head}", "give one with --head")
    try:
        checkpoint = inspect_checkpoint(
            settings.model,
            head_file=settings.head,
            trust_remote_code=settings.trust_remote_code,
            download=patient.load_model,
        )
    except ModelRefusedError as error:
        return problem("model", str(error), "see docs/models.md for the models that are served")
    config = patient.config = checkpoint.config
    patient.parameters = _parameters(config, trust_remote_code=settings.trust_remote_code)
    count = "" if patient.parameters is None else f", {patient.parameters / 1e6:.4g} M parameters"
    head = f"the head {settings.head}" if checkpoint.kind is Kind.DECODER else "its own head"
    merged = "".join(f"; {note}" for note in checkpoint.notes)
    return ok("model", f"{settings.model}: {named(config)} with {head}{count}{merged}")


def _parameters(config: Any, *, trust_remote_code: bool) -> int | None:
    """Parameters of the backbone, counted on torch's device without memory."""
    import torch
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            made: Any = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # a model's own code may not bear it; loading will tell
        return None
    return sum(parameter.numel() for parameter in made.parameters())


def check_weights(patient: Patient) -> Finding | None:
    """Whether the model loads: weights, head, tokenizer, maximum length."""
    if patient.config is None or patient.device is None or patient.dtype is None:
        return None
    if not patient.load_model:
        return ok("weights", "not loaded (--no-model): they may be incomplete")
    if not patient.fits:
        return None
    from transformers.utils import logging

    from r2m_service.modeling.loading import ModelRefusedError, load_backbone

    logging.disable_progress_bar()  # it would be in the midst of our lines
    settings = patient.settings
    try:
        backbone = load_backbone(
            settings.model,
            head_file=settings.head,
            device=settings.device,
            dtype=settings.dtype,
            max_length=settings.max_length,
            trust_remote_code=settings.trust_remote_code,
            chat_template=settings.chat_template,
            template_date=settings.template_date,
            say=patient.say,
        )
    except ModelRefusedError as error:
        return problem("weights", str(error), "mend the model, or give another with --model")
    finally:
        logging.enable_progress_bar()
    patient.backbone = backbone
    notes = "".join(f"; {note}" for note in backbone.notes)
    return ok(
        "weights",
        f"loaded, width {backbone.width_R}, texts of up to {backbone.text.max_length} tokens, "
        f"fingerprint {backbone.fingerprint[:12]}{notes}",
    )


def check_chat_template(patient: Patient) -> Finding | None:
    """Whether prompts and responses can be formatted as chat, the default of a request."""
    if patient.backbone is None:
        return None
    template = patient.backbone.text.template
    if patient.backbone.text.pairs:
        return ok("chat template", "none: a prompt and a response are the tokenizer's pair")
    if template.problem is not None:
        return warning(
            "chat template",
            f"{template.problem}: every request of format chat, the default, will be refused",
            'send "format": "raw", or save one with the tokenizer (tokenizer.chat_template)',
        )
    named = "the tokenizer has one" if template.name is None else f"{template.name}"
    if template.date is None:
        return ok("chat template", named)
    return ok(
        "chat template",
        f"{named}; in place of today's date it writes {template.date} (--template-date)",
    )


def check_first_pass(patient: Patient) -> Finding | None:
    """The pass that the server warms up with."""
    backbone = patient.backbone
    if backbone is None:
        return None
    import torch

    (encoded,) = backbone.encode([backbone.text.pair("Hello", "Hello", raw=True).ids])
    reward = backbone.vanilla(encoded.rte_R[None])
    if not bool(torch.isfinite(reward).all()):
        mend = "try --dtype float32; if it stays, the weights hold NaN or infinity"
        return problem("first pass", "the reward of a short text is not finite", mend)
    return ok("first pass", "the reward of a short text is finite")
