"""The endpoint ``/v1/presets``: named policies to start from."""

from fastapi import APIRouter
from starlette.responses import Response

from api.responses import json_view
from jobs.kit.views import Page
from quant_engine.policy import PRESETS, Preset

router = APIRouter(prefix="/v1", tags=["presets"])


@router.get("/presets", responses={200: {"model": Page[Preset]}})
async def list_presets() -> Response:
    """List every preset with its whole policy. A job's explicit fields override the preset's."""
    return json_view(Page[Preset](data=tuple(PRESETS.values()), has_more=False, next_cursor=None))
