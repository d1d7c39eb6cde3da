"""Lead the calibration windows through the blocks once, and record the input of every targeted site.

Memory: the windows' hidden states, one block, and the working set of that block's sites. Shapes: S windows, T tokens
of a window, D features, B batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from quant_engine.calibration.collectors import ChannelMoments, TailQuantiles, TokenReservoir, channel_statistics
from quant_engine.calibration.records import RESERVOIR_TOKENS, SiteRecord, record_bytes, write_record
from quant_engine.errors import NumericalInstability
from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.models import HiddenStates, Site, StreamedModel, hidden_states_bytes, next_block
from quant_engine.resume_state import check_disk
from quant_engine.windows import Windows, token_rows

BATCH_TOKENS: Final = 1024
"""Tokens that go through a block together."""


@dataclass(frozen=True)
class Split:
    """The number of windows for fitting, for validation and for the test, in this order."""

    fit: int
    validation: int
    test: int

    @property
    def training(self) -> int:
        """The number of fit and validation windows together; channel statistics cover these."""
        return self.fit + self.validation


def split_samples(samples: int, holdout: float) -> Split:
    """Split samples: the last ``holdout`` of them is the test split; of the rest 80 % are fit and 20 % validation."""
    # Every split gets at least one sample.
    test = min(max(1, round(samples * holdout)), samples - 2)
    validation = min(max(1, round((samples - test) * 0.2)), samples - test - 1)
    return Split(fit=samples - test - validation, validation=validation, test=test)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a record stores about a site's input.

    Attributes:
        split: the first ``split.fit`` windows are for fitting, and so on.
        quantiles: every q whose exact quantile is stored.
        norms: every p whose ‖X_j‖_p is stored, besides 2.
        seed: of the token reservoirs.
        capacity: the largest number of tokens of each part of the split.
    """

    split: Split
    quantiles: Sequence[float]
    norms: Sequence[float] = ()
    seed: int
    capacity: int = RESERVOIR_TOKENS

    def kept_tokens(self, length: int) -> int:
        """Return how many tokens a record stores, where windows have ``length`` tokens."""
        parts = (self.split.fit, self.split.validation, self.split.test)
        return sum(min(part * length, self.capacity) for part in parts)


def capture_records(
    model: StreamedModel,
    windows: Windows,
    sites: list[Site],
    directory: Path,
    recording: Recording,
    *,
    on_block: Callable[[int], None],
    execution: Execution = IN_MEMORY,
) -> None:
    """Write one record for each of ``sites`` into ``directory``.

    Args:
        windows: in the order of ``recording.split``. Padding is not recorded.
        on_block: called with the number of finished blocks, first with those of an earlier attempt if there are any.
        execution: stores the hidden states after each finished block; if it has a state, the blocks before it are done.
            With ``low_memory`` the sums over a batch are rounded differently, so the same bits are not promised.

    Raises:
        DiskFull: the records and the states will not fit, or did not fit.
        NumericalInstability: an activation is not finite.
    """
    by_block: dict[int, list[Site]] = {}
    for site in sites:
        by_block.setdefault(site.block, []).append(site)
    state = execution.latest()
    # Blocks after the last targeted one need not run.
    first, last = next_block(state), max(by_block)
    kept, statistics = recording.kept_tokens(windows.length), len(recording.quantiles) + len(recording.norms)
    needed = sum(record_bytes(site, kept, statistics) for site in sites if site.block >= first)
    # Checked before the pass, so that a long run does not fail near its end.
    needed += execution.more_bytes(hidden_states_bytes(model, windows.ids_ST.numel()))
    check_disk(directory, needed, "The calibration records")
    batches = windows.ids_ST.split(execution.together(max(1, BATCH_TOKENS // windows.length)))
    hidden_states = HiddenStates(model, batches, state=state, place=execution.place(model.device))
    if first:
        on_block(first)
    for index in range(first, last + 1):
        collectors = [
            (site, _SiteCollector(site, recording, windows, model.device)) for site in by_block.get(index, [])
        ]
        with model.block(index) as block, _listening(block, model.architecture.block_prefix(index), collectors):
            for batch in range(len(hidden_states)):
                hidden_states.put(
                    batch, _forward(block, hidden_states.hidden(batch), hidden_states.arguments(index, batch))
                )
        # The records first: a state means that the records of all blocks before it are complete.
        for site, collector in collectors:
            write_record(directory, site, collector.record())
        execution.keep(index + 1, {} if index == last else hidden_states.tensors())
        on_block(index + 1)


@torch.no_grad()
def _forward(block: nn.Module, hidden_BTD: Tensor, arguments: dict[str, Any]) -> Tensor:
    output: Tensor = block(hidden_BTD, **arguments)
    return output


class _SiteCollector:
    """Collects the data of one site's record from that site's input, in the order of the windows."""

    def __init__(self, site: Site, recording: Recording, windows: Windows, device: torch.device) -> None:
        self.site, split = site, recording.split
        channels = site.features // site.tied
        self._unseen_ST = windows.valid_ST
        parts = _parts(windows.valid_ST, split)
        sizes = [int(part_ST.sum()) for part_ST in parts]
        self._training = sizes[0] + sizes[1]
        self._tail = TailQuantiles(
            recording.quantiles, tokens=self._training * site.tied, channels=channels, device=device
        )
        self._moments = ChannelMoments(channels, device, recording.norms)
        self._starts = [0, sizes[0], self._training]
        self._reservoirs = [
            TokenReservoir(
                tokens=size,
                features=site.features,
                capacity=recording.capacity,
                seed=recording.seed + part,
                keep_massive=part == 0,
                firsts=_first_positions(parts[part]),
            )
            for part, size in enumerate(sizes)
        ]
        self._seen = 0

    def add(self, x_BTD: Tensor) -> None:
        """Add the site's input of one batch."""
        valid_BT, self._unseen_ST = self._unseen_ST[: len(x_BTD)], self._unseen_ST[len(x_BTD) :]
        x_TD = token_rows(x_BTD.detach(), valid_BT).float()
        first, self._seen = self._seen, self._seen + len(x_TD)
        # Statistics cover the fit and validation tokens only, which come first; a batch may contain the border.
        training_TD = x_TD[: max(0, self._training - first)]
        if len(training_TD):
            pooled_TP = self.site.pool(training_TD)
            magnitude_TP = pooled_TP.abs()
            self._moments.add(pooled_TP, magnitude_TP)
            self._tail.add(magnitude_TP)
        x_TD = x_TD.cpu()
        for start, reservoir in zip(self._starts, self._reservoirs, strict=True):
            # The part of this batch that belongs to the reservoir's split.
            begin, end = max(first, start), min(self._seen, start + reservoir.tokens)
            if begin < end:
                reservoir.add(x_TD[begin - first : end - first], begin - start)

    def record(self) -> SiteRecord:
        """Return the finished record.

        Raises:
            NumericalInstability: an activation is not finite.
        """
        statistics = channel_statistics(self._moments, self._tail)
        # One value that is not finite makes the sum of its channel's squares not finite.
        if not bool(torch.isfinite(statistics.l2_D).all()):
            raise NumericalInstability(
                detail=f"The input of {self.site.name} has NaN or infinite values.",
                hint="Check the checkpoint's weights; the model does not compute finite activations on this text.",
            )
        fit, validation, test = (reservoir.result() for reservoir in self._reservoirs)
        return SiteRecord(
            statistics=statistics,
            fit_FD=fit,
            validation_VD=validation,
            test_ED=test,
            input_absmax=float(statistics.absmax_D.max()),
            input_kurtosis=self._moments.kurtosis,
        )


def _parts(valid_ST: Tensor, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """The windows of fit, validation and test."""
    fit_ST, validation_ST, test_ST = valid_ST.split([split.fit, split.validation, split.test])
    return fit_ST, validation_ST, test_ST


def _first_positions(valid_ST: Tensor) -> Tensor:
    """The number, among the tokens of all windows, of the first token of each."""
    ends_S = valid_ST.sum(dim=1).cumsum(0)
    return torch.cat([ends_S.new_zeros(1), ends_S[:-1]])


@contextmanager
def _listening(block: nn.Module, prefix: str, collectors: list[tuple[Site, _SiteCollector]]) -> Iterator[None]:
    """Pass each collector the input of its site while the ``with`` lasts.

    All readers of a site have the same input, so a hook on the first of them is enough.
    """
    handles = [
        block.get_submodule(site.all_readers[0].removeprefix(prefix)).register_forward_pre_hook(
            lambda _module, arguments, collector=collector: collector.add(arguments[0])
        )
        for site, collector in collectors
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
