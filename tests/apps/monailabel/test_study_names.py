from medfusion_monai.apps.monailabel.study_names import edited_name, is_made, real_studies, synthetic_name


def test_generated_studies_are_named_by_class_and_seed():
    assert synthetic_name("cardiomegaly", 12) == "synthetic_cardiomegaly_12"


def test_class_names_become_names_of_files():
    assert synthetic_name("a/b ../c", 0) == "synthetic_a_b____c_0"


def test_edited_studies_are_named_by_edit_class_and_source():
    assert edited_name("counterfactual", "scan7", "cardiomegaly") == "edited_counterfactual_cardiomegaly_scan7"
    assert edited_name("reconstruct", "scan7") == "edited_reconstruct_scan7"


def test_made_studies_are_told_from_real_ones():
    names = ["scan7", synthetic_name("a", 0), edited_name("inpaint", "scan7", "a"), "unsynthetic_1"]
    assert [is_made(name) for name in names] == [False, True, True, False]
    assert real_studies(names) == ["scan7", "unsynthetic_1"]
