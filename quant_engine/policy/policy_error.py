"""The error of a policy that contradicts itself."""


class PolicyError(ValueError):
    """A policy whose fields are each valid but contradict each other."""

    def __init__(self, pointer: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.code = code
        self.detail = detail


def given(group_size: int | None) -> str:
    """Return, for a message, what a policy says of the size of groups."""
    return "without a group_size" if group_size is None else f"with group_size {group_size}"
