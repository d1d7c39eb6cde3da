"""Windows: drawn by seed, begun as their documents are, packed or one document each; what a loss counts of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant_engine.calibration import TokenizedDocument, calibration_windows, evaluation_windows
from quant_engine.errors import NotEnoughText, UnsupportedPolicy
from quant_engine.windows import Windows, stored_windows, write_windows

BOS = 999


def _one(count: int) -> list[TokenizedDocument]:
    return [TokenizedDocument(torch.arange(count))]


def _begun(*lengths: int, lead: tuple[int, ...] = (BOS,)) -> list[TokenizedDocument]:
    """Documents of so many tokens behind their special tokens; the tokens count on from one to the next."""
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    texts = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return [TokenizedDocument(torch.cat([torch.tensor(lead), text]), len(lead)) for text in texts]


def test_windows_are_disjoint_seeded_and_drawn_from_everywhere() -> None:
    windows = calibration_windows(_one(1000), samples=20, sequence_length=10, seed=5).ids_ST
    assert windows.shape == (20, 10)
    assert len(windows.flatten().unique()) == 200
    assert int(windows.max()) > 700
    assert torch.equal(windows, calibration_windows(_one(1000), samples=20, sequence_length=10, seed=5).ids_ST)
    assert not torch.equal(windows, calibration_windows(_one(1000), samples=20, sequence_length=10, seed=6).ids_ST)


def test_without_special_tokens_windows_are_the_text_cut_into_pieces() -> None:
    """Joined and cut from the first token on, which is what they always were."""
    documents = [TokenizedDocument(part) for part in torch.arange(1000).split([333, 2, 665])]
    windows = calibration_windows(documents, samples=90, sequence_length=11, seed=5)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    assert torch.equal(windows.ids_ST, torch.arange(990).reshape(90, 11)[order])
    assert not windows.padded
    assert windows.predicted == 90 * 10
    assert not bool(windows.predicted_ST[:, 0].any())


def test_too_little_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(NotEnoughText, match=r"101 × 10 = 1,010 tokens; the text has 1,000") as caught:
        calibration_windows(_one(1000), samples=101, sequence_length=10, seed=0)
    assert "at most 100 samples" in caught.value.hint
    with pytest.raises(NotEnoughText, match=r"asks for 1,001 tokens; the evaluation text has 1,000"):
        evaluation_windows(_one(1000), tokens=1001, sequence_length=10)


@pytest.mark.parametrize(
    ("tokens", "length", "remedy"),
    [(100, 64, "sequence_length of at most 12,"), (20, 64, "a text of at least 512 tokens"), (0, 64, "at least 512")],
)
def test_no_remedy_asks_for_less_than_a_request_may(tokens: int, length: int, remedy: str) -> None:
    with pytest.raises(NotEnoughText) as caught:
        calibration_windows(_one(tokens), samples=8, sequence_length=length, seed=0)
    assert remedy in caught.value.hint
    with pytest.raises(NotEnoughText) as caught:
        evaluation_windows(_one(20), tokens=64, sequence_length=32)
    assert "at least 64 tokens" in caught.value.hint


def test_evaluation_takes_the_first_tokens_in_order_and_the_rest_as_a_window() -> None:
    windows = evaluation_windows(_one(1000), tokens=25, sequence_length=10)
    assert [part.ids_ST.shape for part in windows] == [(2, 10), (1, 5)]
    assert torch.cat([part.ids_ST.flatten() for part in windows]).tolist() == list(range(25))
    assert [part.ids_ST.shape for part in evaluation_windows(_one(40), tokens=21, sequence_length=10)] == [(2, 10)]
    assert [part.ids_ST.shape for part in evaluation_windows(_one(40), tokens=8, sequence_length=10)] == [(1, 8)]


def test_every_window_begins_with_the_special_tokens_and_the_text_has_no_gap() -> None:
    windows = evaluation_windows(_begun(40), tokens=25, sequence_length=10, special_tokens=["<bos>"])
    assert [part.ids_ST.tolist() for part in windows] == [
        [[BOS, *range(9)], [BOS, *range(9, 18)]],
        [[BOS, *range(18, 22)]],
    ]
    assert [part.predicted for part in windows] == [18, 4]
    assert {part.special_tokens for part in windows} == {("<bos>",)}
    (drawn,) = calibration_windows(_begun(40), samples=1, sequence_length=10, seed=0).ids_ST.tolist()
    assert drawn[0] == BOS
    assert drawn[1] % 9 == 0


def test_packed_documents_each_begin_with_them_and_none_twice() -> None:
    """The second document begins within a window, the third where a window does."""
    (windows,) = evaluation_windows(_begun(4, 3, 20), tokens=20, sequence_length=10)
    assert windows.ids_ST.tolist() == [[BOS, 0, 1, 2, 3, BOS, 4, 5, 6, BOS], [BOS, *range(7, 16)]]
    # Nobody predicts where a text begins.
    assert windows.predicted_ST.tolist() == [[x not in (0, 5, 9) for x in range(10)], [x > 0 for x in range(10)]]
    (windows,) = evaluation_windows(_begun(9, 20), tokens=20, sequence_length=10)
    assert windows.ids_ST.tolist() == [[BOS, *range(9)], [BOS, *range(9, 18)]]


def test_none_of_several_special_tokens_is_predicted_or_cut_in_two() -> None:
    (windows,) = evaluation_windows(_begun(6, 20, lead=(998, 999)), tokens=18, sequence_length=9)
    assert windows.ids_ST.tolist() == [[998, 999, 0, 1, 2, 3, 4, 5, 998], [998, 999, *range(6, 13)]]
    assert windows.predicted_ST.sum(dim=1).tolist() == [6, 7]
    assert len(evaluation_windows(_begun(50, lead=(998, 999)), tokens=11, sequence_length=9)) == 1
    with pytest.raises(UnsupportedPolicy, match="9 special tokens; a window has 8"):
        calibration_windows(_begun(50, lead=tuple(range(9))), samples=1, sequence_length=8, seed=0)


def test_a_document_that_a_template_began_without_them_has_none_in_its_windows() -> None:
    documents = [*_begun(9), TokenizedDocument(torch.arange(100, 120))]
    (windows,) = evaluation_windows(documents, tokens=30, sequence_length=10)
    assert windows.ids_ST[1:].tolist() == [list(range(100, 110)), list(range(110, 120))]


def test_a_document_a_window_is_cut_or_padded_with_a_mask() -> None:
    documents = _begun(3, 20, 0, 7, 9)
    windows = calibration_windows(documents, samples=4, sequence_length=8, seed=1, pack=False)
    found = {
        tuple(ids_T[valid_T].tolist()): predicted_T.tolist()
        for ids_T, valid_T, predicted_T in zip(windows.ids_ST, windows.valid_ST, windows.predicted_ST, strict=True)
    }
    assert found == {
        (BOS, 0, 1, 2): [False, *[True] * 3, *[False] * 4],
        (BOS, *range(3, 10)): [False, *[True] * 7],
        (BOS, *range(23, 30)): [False, *[True] * 7],
        (BOS, *range(30, 37)): [False, *[True] * 7],
    }
    assert (windows.tokens, windows.predicted, windows.padded) == (28, 24, True)
    assert windows.ids_ST.shape == (4, 8)
    with pytest.raises(NotEnoughText, match=r"asks for 5 documents.* has 4") as caught:
        calibration_windows(documents, samples=5, sequence_length=8, seed=1, pack=False)
    assert "at most 4 samples" in caught.value.hint
    assert "pack to true" in caught.value.hint


def test_windows_are_stored_with_their_masks(tmp_path: Path) -> None:
    windows = calibration_windows(
        _begun(3, 20, 7), samples=3, sequence_length=8, seed=1, pack=False, special_tokens=["a\nb", "c"]
    )
    write_windows(tmp_path / "windows.safetensors", windows)
    found = stored_windows(tmp_path / "windows.safetensors")
    assert _tensors(found) == _tensors(windows)
    assert found.special_tokens == ("a\nb", "c")


def _tensors(windows: Windows) -> list[list[list[int]]]:
    each: tuple[Tensor, ...] = (windows.ids_ST, windows.valid_ST, windows.predicted_ST)
    return [tensor.tolist() for tensor in each]
