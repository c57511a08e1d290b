"""The importable, unusable stub of torchvision.utils."""


def __getattr__(name: str) -> object:
    raise AttributeError(f"torchvision.utils.{name}: this is the benchmark's stub of torchvision; install torchvision to use it.")
