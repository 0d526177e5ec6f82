"""Pictures for pages: small, free of what reaches outside them, and true to the numbers."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from fmstune.runs.report import charts
from fmstune.runs.report.charts import Axes, Line, Scale, Series, Spot

AXES = Axes("Loss by step", "optimizer step", "loss (nats)")


def test_a_chart_is_one_element_with_its_title_units_and_names_as_text() -> None:
    svg = charts.draw_curves([Line("a", [(1, 2.0), (2, 1.0)]), Line("b", [(1, 1.0), (2, 2.0)], 1)], AXES)
    root = ElementTree.fromstring(svg)
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")}
    assert texts >= {"Loss by step", "optimizer step", "loss (nats)", "a", "b"}
    assert root.attrib["aria-label"] == "Loss by step"
    assert not re.search(r"<style|<metadata|<!DOCTYPE|href=\"http|<script", svg)


def test_two_charts_of_a_page_share_no_id_and_refer_to_their_own() -> None:
    pages = [
        charts.draw_curves([Line("", [(1, 1.0), (2, 2.0)])], AXES._replace(title=title)) for title in ("One", "Two")
    ]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in pages]
    assert ids[0] and not ids[0] & ids[1]
    for own, svg in zip(ids, pages, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= own


def test_the_same_numbers_give_the_same_picture() -> None:
    lines = [Line("a", [(1, 2.0), (2, 1.0)])]
    assert charts.draw_curves(lines, AXES) == charts.draw_curves(lines, AXES)


def test_names_of_users_are_text_and_no_formula_or_markup() -> None:
    root = ElementTree.fromstring(charts.draw_curves([Line("$x^2$ <b>&", [(1, 1.0)]), Line("b", [(1, 2.0)])], AXES))
    assert "$x^2$ <b>&" in "".join(root.itertext())


def test_long_lines_are_averaged_so_that_a_page_stays_small() -> None:
    points = [(step, float(step % 2)) for step in range(1, 10_001)]
    assert charts.thin_points(points, 100) == [(step, 0.5) for step in range(100, 10_001, 100)]
    assert charts.thin_points(points[:3], 100) == points[:3]
    many = [Line(str(number), points, number) for number in range(8)]
    assert len(charts.draw_curves(many, AXES)) < 300_000


def test_lines_differ_in_colour_and_style() -> None:
    styles = [(charts._style(place)["color"], str(charts._style(place)["linestyle"])) for place in range(16)]
    assert len(set(styles)) == 16
    assert all(styles[place][1] != styles[place + 1][1] for place in range(15))


def test_a_learning_rate_stands_on_a_log_axis_with_the_values_that_were_tried() -> None:
    spots = [Spot(rate, loss, 0.1, (loss - 0.1, loss + 0.1)) for rate, loss in ((1e-5, 3.0), (1e-3, 1.0), (1e-4, 2.0))]
    svg = charts.draw_setting([Series("", spots)], Axes("Loss by rate", "rate", "loss", log_x=True))
    ticks = [float(text) for text in re.findall(r">([\d.e-]+)</text>", svg) if float(text) < 0.01]
    assert ticks[:3] == [1e-5, 1e-3, 1e-4]
    assert "rate, log scale" in svg


def test_choices_stand_beside_each_other_by_their_names() -> None:
    svg = charts.draw_setting([Series("", [Spot("lora", 1.0, 0.0, (1.0,)), Spot("full", 2.0, 0.0, (2.0,))])], AXES)
    assert [name for name in re.findall(r">(\w+)</text>", svg) if name in ("lora", "full")] == ["full", "lora"]


@pytest.mark.slow
def test_values_that_stand_close_to_each_other_do_not_have_their_names_over_each_other() -> None:
    spots = [Spot(rate, 1.0, 0.0, (1.0,)) for rate in (1.5e-4, 1.7e-4, 1.3e-3, 9e-2)]
    svg = charts.draw_setting([Series("", spots)], Axes("Loss by rate", "rate", "loss", log_x=True))
    names = re.findall(r">([\d.e-]+)</text>", svg)
    assert {"0.001", "0.01"} <= {*names} and "0.00015" not in names
    narrow = [Spot(rate, 1.0, 0.0, (1.0,)) for rate in (1.5e-4, 1.6e-4, 6e-4)]
    svg = charts.draw_setting([Series("", narrow)], Axes("Loss by rate", "rate", "loss", log_x=True))
    assert {"0.0002", "0.0005"} <= {*re.findall(r">([\d.e-]+)</text>", svg)}


def test_steps_are_whole_numbers() -> None:
    svg = charts.draw_curves([Line("a", [(1, 2.0), (2, 1.0), (3, 1.0)])], AXES)
    x, _ = svg.split('id="loss-by-step-matplotlib.axis_2"')
    assert re.findall(r">([\d.]+)</text>", x) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("values", "log"), [([1e-5, 1e-3], True), ([1, 2, 4], False), ([0, 100], False), (["a", "b"], False), ([], False)]
)
def test_an_axis_is_logarithmic_where_values_span_decades(values: list[object], log: bool) -> None:
    assert charts.spans_decades(values) is log


def test_losses_are_those_of_training_and_of_each_held_out_set() -> None:
    metrics = [
        {"step": 1, "loss": 2.0},
        {"step": 1, "eval_a_loss": 3.0},
        {"step": 2, "loss": "nan"},
        {"eval_a_loss": 1.0},
    ]
    assert [(line.label, list(line.points)) for line in charts.loss_lines(metrics)] == [
        ("train", [(1, 2.0)]),
        ("held out a", [(1, 3.0)]),
    ]


def test_parallel_axes_hold_numbers_words_and_a_value_that_is_the_same_in_all() -> None:
    scales = [Scale("rate", [1e-4, 1e-2], log=True), Scale("kind", ["b", "a"]), Scale("same", [3, 3])]
    assert [charts._heights(scale) for scale in scales] == [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
    svg = charts.draw_parallel(scales, "All settings")
    texts = "".join(ElementTree.fromstring(svg).itertext())
    assert all(text in texts for text in ("rate, log scale", "kind", "same", "0.0001", "0.01"))
    assert charts._apart([0.0, 0.01, 0.5, 1.0]) == [0.0, 1.0, 0.5]
