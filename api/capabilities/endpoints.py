"""The endpoint ``/v1/capabilities``: what this installation can do now."""

from typing import Any, get_args

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from api.capabilities.schemas import (
    Capabilities,
    DatasetCapability,
    LimitsCapability,
    QuantizationCapability,
    TransformCapability,
)
from api.deps import MAX_PAGE, SettingsDep, State
from api.responses import json_view
from jobs.job.local_files import dataset_names, default_dataset, hub_dataset_names, local_models
from jobs.kit.errors import DatasetNotFound
from jobs.settings import Settings
from quant_engine.interface.architectures import ARCHITECTURES
from quant_engine.interface.datasets import Purpose
from quant_engine.policy import (
    BUILT_IN,
    SELF,
    ActivationQuantization,
    Also,
    NumberFormat,
    Output,
    Statistic,
    TransformKind,
    WeightQuantization,
)

router = APIRouter(prefix="/v1", tags=["capabilities"])


@router.get("/capabilities", responses={200: {"model": Capabilities}})
def get_capabilities(settings: SettingsDep, state: State) -> Response:
    """List architectures, formats, transforms, datasets, local models, recently seen workers, and the limits."""
    workers = state.overview.recent_workers()
    return json_view(
        Capabilities(
            architectures=tuple(each.class_name for each in ARCHITECTURES),
            # A weight format that quantizes nothing is refused.
            weights=QuantizationCapability(
                formats=tuple(each.value for each in NumberFormat if each.quantizes),
                granularities=_choices(WeightQuantization, "granularity"),
            ),
            activations=QuantizationCapability(
                formats=tuple(each.value for each in NumberFormat),
                granularities=_choices(ActivationQuantization, "granularity"),
            ),
            transforms=TransformCapability(
                kinds=tuple(kind.value for kind in TransformKind), statistics=_choices(Statistic, "kind")
            ),
            profiles=_choices(Output, "profile"),
            also=get_args(Also),
            datasets=_datasets(settings),
            local_models=local_models(settings),
            workers=workers,
            devices=tuple(sorted({worker.device for worker in workers})),
            limits=LimitsCapability(
                max_body_bytes=settings.max_body_bytes,
                max_attempts=settings.max_attempts,
                max_page_entries=MAX_PAGE,
                # Rounded down: an answer is stored at least this long.
                idempotency_key_seconds=int(settings.idempotency_seconds),
            ),
        )
    )


def _choices(model: type[BaseModel], field: str) -> tuple[str, ...]:
    # The values come from the request's own type, so this list can not differ from what is accepted.
    annotation: Any = model.model_fields[field].annotation
    return tuple(get_args(annotation))


def _datasets(settings: Settings) -> tuple[DatasetCapability, ...]:
    names = {purpose: dataset_names(settings, purpose) for purpose in Purpose}
    defaults = {purpose: _default(settings, purpose) for purpose in Purpose}
    sources: dict[str, Any] = {BUILT_IN: "built_in", SELF: "model"} | dict.fromkeys(hub_dataset_names(settings), "hub")
    return tuple(
        DatasetCapability(
            name=name,
            source=sources.get(name, "operator"),
            uses=tuple(purpose.value for purpose in Purpose if name in names[purpose]),
            default=name in defaults.values(),
            default_for=tuple(purpose.value for purpose in Purpose if name == defaults[purpose]),
        )
        for name in sorted({name for listed in names.values() for name in listed})
    )


def _default(settings: Settings, purpose: Purpose) -> str | None:
    try:
        return default_dataset(settings, purpose)
    except DatasetNotFound:
        return None  # the operator's default is not there, which requests without a name are told
