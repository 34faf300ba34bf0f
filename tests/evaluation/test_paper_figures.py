from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.evaluation.paper_figures import CLASS_NAMES


def test_class_names_are_those_of_the_phantoms_of_each_modality():
    assert {name: set(family.class_names) for name, family in FAMILIES.items()} == CLASS_NAMES
