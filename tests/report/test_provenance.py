from shlex import split

import pytest

from medfusion_monai.report.provenance import this_command


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("/data/St. Anna/real/", "real"),
        ("GAN=/data/gan", "GAN=gan"),
        ("GAN=/data/run=1:b", "GAN=run=1:b"),
        ("phantoms:/data/weights/f.pt", "phantoms:f.pt"),
        ("torchvision:resnet18:/data/r.pth", "torchvision:resnet18:r.pth"),
        ("{'GAN':'/data/gan','b':'/data/St. Anna/b'}", "{'GAN':'gan','b':'b'}"),
        ("[/data/a,/data/b]", "[a,b]"),
        ("--samples_dir=/data/eval", "--samples_dir=eval"),
        ("runs/St. Anna/eval", "eval"),
        ("../a/b=relative", "b=relative"),
        ("GAN=runs/gan", "GAN=gan"),
        ("phantoms:weights/f.pt", "phantoms:f.pt"),
        ("{'GAN': 'runs/gan', 'b': '../St. Anna/b'}", "{'GAN': 'gan', 'b': 'b'}"),
        ("{GAN: runs/gan, b: St. Anna/b}", "{GAN: gan, b: b}"),
        ("[data/a, /data/b]", "[a, b]"),
        ("--samples_dir=runs/eval", "--samples_dir=eval"),
        ("$torch.device('cpu')", "$torch.device('cpu')"),
        ("[50,150]", "[50,150]"),
        ("it's", "it's"),
    ],
)
def test_paths_are_shortened_to_their_last_part(argument, shown):
    assert split(this_command(["/usr/bin/medfusion", argument])) == ["medfusion", shown]


def test_package_that_is_run_by_its_name_is_called_so():
    path = "/usr/lib/python3/site-packages/monai/bundle/__main__.py"
    assert this_command([path, "run", "evaluating"]) == "python -m monai.bundle run evaluating"


def test_program_can_be_found_by_a_shell(tmp_path):
    package = tmp_path / "St. Anna" / "outer" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    assert this_command([str(package / "__main__.py"), "x y"]) == "python -m outer.inner 'x y'"
    assert this_command(["tools/measure.py", "[a,b]"]) == "python measure.py '[a,b]'"
