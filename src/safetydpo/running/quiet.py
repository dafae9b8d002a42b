"""transformers and diffusers without what fills a log and says nothing: called before they load a model."""

# Image processors that diffusers asks transformers for by the names of their torchvision kind.
PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")


def quiet_transformers() -> None:
    """No bar for each part that is loaded (downloads keep theirs), and no warning where torchvision is missing: the PIL
    processors are then taken by their own names.
    """
    import transformers  # half a second, for those who load a model
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import is_torchvision_available, logging

    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()  # and those of downloads
    if downloads:
        enable_progress_bars()
    if not is_torchvision_available():
        for name in PROCESSORS:
            setattr(transformers, name, getattr(transformers, f"{name}Pil"))


def quiet_diffusers() -> None:
    """The same for diffusers, which loads transformers' parts, and no word of parts that a LoRA leaves alone."""
    from diffusers.utils import logging as diffusers_logging

    quiet_transformers()
    diffusers_logging.disable_progress_bar()
    # models/adapters.py looks itself whether all of a LoRA was applied
    diffusers_logging.get_logger("diffusers.loaders").setLevel(diffusers_logging.ERROR)
