import csv

import torch

from medfusion_monai.evaluation.metrics.similarity import ms_ssim_as_in_paper
from medfusion_monai.evaluation.paper_figures import published_reconstructions
from medfusion_monai.evaluation.reconstructions import describe_ms_ssim, reconstruction_metrics, write_values


def test_paper_variant_is_measured_where_its_window_fits():
    metrics = reconstruction_metrics(image_size=[192, 176])
    assert metrics["ms_ssim_paper"].metric_fn.function is ms_ssim_as_in_paper
    for small in ([192, 175], [32, 32]):
        assert "ms_ssim_paper" not in reconstruction_metrics(image_size=small)


def test_published_values_stand_in_the_column_of_their_script():
    for row in published_reconstructions(["cardiomegaly", "no_cardiomegaly"])["rows"]:
        assert row.keys() == {"name", "ms_ssim_paper", "mse"}


def test_text_above_the_table_states_scales_and_window():
    assert "five scales, a Gaussian window of 3 x 3 pixels" in describe_ms_ssim([64, 64])
    assert "needs images of at least 176" in describe_ms_ssim([64, 64])
    assert "needs" not in describe_ms_ssim([256, 256])
    assert ms_ssim_as_in_paper(torch.rand(2, 1, 176, 176), torch.rand(2, 1, 176, 176)).shape == (2,)


def test_split_whose_name_is_a_formula_is_text_in_the_tables(tmp_path):
    items = [{"split": "=1+1", "number": number} for number in range(2)]
    write_values(tmp_path, items, {"mse": torch.tensor([[0.1], [0.2]])})
    with open(tmp_path / "mse_raw.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == ["'=1+1 0", "'=1+1 1"]
