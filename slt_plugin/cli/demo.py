"""``slt-demo``: a local page that translates a video."""


def main() -> int:
    raise NotImplementedError
