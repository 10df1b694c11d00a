"""The pack's version, for the files it writes. ComfyUI loads the pack by path, where no package metadata tells it."""

PACK_VERSION = "0.1.0"
