"""placeholder"""


class Run: ...


def load(x): ...
