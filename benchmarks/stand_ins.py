"""Import a few modules of a package that can not run here, with stand-ins for everything else that they import.

Every attribute of a stand-in is another stand-in. It can be called, subclassed, subscripted and used as a decorator,
and does nothing. Values on which the executed modules really depend are set with :func:`provide`.
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
    """The type of all stand-ins. They are classes, so that they can be subclassed and called."""

    def __getattr__(cls, name: str) -> Any:
        found = _stand_in(name)
        setattr(cls, name, found)
        return found

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        # A real class that has a stand-in as its base is instantiated normally.
        if "is_stand_in" not in cls.__dict__:
            return super().__call__(*arguments, **named)
        # With one function or class as its argument, the stand-in is used as a decorator and returns it unchanged.
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
    # Python itself looks for special attributes. It must not find a stand-in there.
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    return _StandIn(name, (), {"is_stand_in": True})


class _StandInModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        found = _stand_in(name)
        setattr(self, name, found)
        return found


class StandIns(MetaPathFinder, Loader):
    """Finds the modules of some packages: real modules below a directory, stand-ins for all others.

    Args:
        root: the directory where the packages were unpacked.
        packages: the top-level names that this finder handles.
        real: patterns of the names of modules that are read from ``root``.
    """

    def __init__(self, root: Path, packages: Sequence[str], real: Sequence[str]) -> None:
        self._root = root
        self._packages = packages
        self._real = real

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        """Return the file of a real module, or an empty package."""
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
        """Create an empty module, every attribute of which is a stand-in."""
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in module has no code."""


def install(finder: StandIns) -> None:
    """Put ``finder`` before all other finders."""
    sys.meta_path.insert(0, finder)


def provide(module: str, **values: Any) -> None:
    """Set the values of a stand-in module that the real modules need, before these are imported."""
    target = importlib.import_module(module)
    for name, value in values.items():
        setattr(target, name, value)
