import pytest
from monai.transforms import Compose
from torch.utils.data import DataLoader

from medfusion_monai.data import DataError
from medfusion_monai.errors import first_cause, short_message


class Failing:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise DataError(f"/data/{index}.png: is empty. Fetch it again.")


def test_error_of_a_transform_is_found_below_monai_s_wrappers():
    def fail(item):
        raise DataError("a.png: is empty")

    with pytest.raises(RuntimeError) as caught:
        Compose([fail])({})
    assert str(first_cause(caught.value)) == "a.png: is empty"


def test_error_that_is_wrapped_for_a_reason_is_not_unwrapped():
    error = DataError("a.png: cannot be opened: disk")
    error.__cause__ = OSError("disk")
    assert first_cause(error) is error


def test_error_of_a_worker_is_shown_without_its_traceback():
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert short_message(caught.value) == "/data/0.png: is empty. Fetch it again."


def test_message_of_several_lines_stays_whole():
    assert short_message(DataError("2 images:\n  a.png\n  b.png")) == "2 images:\n  a.png\n  b.png"
