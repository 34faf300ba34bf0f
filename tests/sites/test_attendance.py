from medfusion_monai.sites.attendance import Attendance

SITES = ["north", "south"]


def reports(attendance, *each):
    """Note what is heard of and who works, once per 5 seconds from 5 on."""
    for number, (heard, working) in enumerate(each, start=1):
        attendance.note(5.0 * number, heard, working)
    return attendance


def test_site_that_works_is_neither_away_nor_back():
    kept = reports(Attendance(SITES, now=0.0, patience=10.0), *[(SITES, SITES)] * 5)
    assert (kept.away, kept.back) == ([], [])


def test_silent_site_is_away_after_the_patience():
    silent = Attendance(SITES, now=0.0, patience=10.0)
    assert reports(silent, (["north"], ["north"])).away == []
    silent.note(10.0, ["north"], ["north"])
    assert (silent.away, silent.back) == (["south"], [])


def test_site_is_back_when_it_was_connected_for_as_long_without_work():
    report = Attendance(SITES, now=0.0, patience=10.0)
    reports(report, (["north"], ["north"]), (["north"], ["north"]), (SITES, ["north"]))
    assert (report.away, report.back) == (["south"], [])
    report.note(20.0, SITES, ["north"])
    assert (report.away, report.back) == (["south"], ["south"])


def test_site_that_was_started_again_between_two_reports_is_back_too():
    """It was never silent, but no longer works for the job."""
    report = reports(Attendance(SITES, now=0.0, patience=10.0), (SITES, SITES), (SITES, ["north"]), (SITES, ["north"]))
    assert (report.away, report.back) == (["south"], ["south"])


def test_site_that_works_again_is_no_longer_away():
    report = reports(Attendance(SITES, now=0.0, patience=10.0), *[(["north"], ["north"])] * 3, (SITES, SITES))
    assert (report.away, report.back) == ([], [])
