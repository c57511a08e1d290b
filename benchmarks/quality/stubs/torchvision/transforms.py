"""The importable, unusable stub of torchvision.transforms."""


def __getattr__(name: str) -> object:
    raise AttributeError(f"torchvision.transforms.{name}: this is the benchmark's stub of torchvision; install torchvision to use it.")
