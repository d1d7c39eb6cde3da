"""Model sources and block streaming: a model is a stream of decoder blocks, never a whole in memory."""

from quant_engine.models.architectures import ARCHITECTURES, Architecture, ProducerKind, SiteTemplate, architecture_of
from quant_engine.models.fusion import fuse_scales
from quant_engine.models.sites import Site, model_sites, target_sites
from quant_engine.models.source import CheckpointSource, safe_config
from quant_engine.models.streaming import StreamedModel

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "CheckpointSource",
    "ProducerKind",
    "Site",
    "SiteTemplate",
    "StreamedModel",
    "architecture_of",
    "fuse_scales",
    "model_sites",
    "safe_config",
    "target_sites",
]
