"""Import a few modules of a package that can not run here, with stand-ins for everything else that they import.

A stand-in answers any attribute with another stand-in, can be called, subclassed, subscripted and used as a decorator,
and does nothing. What the modules under test really depend on has to be given to them (:func:`provide`).
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any


class _StandIn(type):
    """The type of all stand-ins: a class can be subclassed and called, and its type answers for it."""

    def __getattr__(cls, name: str) -> Any:
        found = _stand_in(name)
        setattr(cls, name, found)
        return found

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        if "is_stand_in" not in cls.__dict__:
            return super().__call__(*arguments, **named)
        decorated = arguments[0] if len(arguments) == 1 and not named else None
        return decorated if isinstance(decorated, (FunctionType, type)) else _stand_in(cls.__name__)

    def __getitem__(cls, _key: Any) -> Any:
        return cls

    def __or__(cls, _other: Any) -> Any:
        return cls

    def __ror__(cls, _other: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __bool__(cls) -> bool:
        return False


def _stand_in(name: str) -> Any:
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    return _StandIn(name, (), {"is_stand_in": True})


class _StandInModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        found = _stand_in(name)
        setattr(self, name, found)
        return found


class StandIns(MetaPathFinder, Loader):
    """Finds the modules of some packages: real ones below a directory, stand-ins otherwise.

    Args:
        root: where the packages were unpacked.
        packages: the top-level names to answer for.
        real: patterns of the modules that are read from ``root``.
    """

    def __init__(self, root: Path, packages: Sequence[str], real: Sequence[str]) -> None:
        self._root = root
        self._packages = packages
        self._real = real

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        """A real module's file, or an empty package."""
        if fullname.partition(".")[0] not in self._packages:
            return None
        if any(fnmatchcase(fullname, pattern) for pattern in self._real):
            place = self._root.joinpath(*fullname.split("."))
            if (place / "__init__.py").is_file():
                return spec_from_file_location(fullname, place / "__init__.py", submodule_search_locations=[str(place)])
            if place.with_suffix(".py").is_file():
                return spec_from_file_location(fullname, place.with_suffix(".py"))
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module that answers for everything."""
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def install(finder: StandIns) -> None:
    """Ask ``finder`` before all others."""
    sys.meta_path.insert(0, finder)


def provide(module: str, **values: Any) -> None:
    """Give a stand-in module what the real modules need of it, before they are imported."""
    target = importlib.import_module(module)
    for name, value in values.items():
        setattr(target, name, value)
