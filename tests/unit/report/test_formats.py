"""Tables as CSV and LaTeX; best and second best as they are printed."""

from ltdd_jax.report import formats

HEADER = ["images", "top-1", "head", "seeds"]
ROWS = [
  ["a_b", "50.0 ± 1.0", "9.5", "3"],
  ["50 %", "50.0", "10.0", "2"],
  ["c", "49.9 ± 0.1", "-", "1"],
  ["d", "7.0", "-", "9"],
]


def test_best_and_second_by_number_and_ties_share_a_place():
  assert formats.marks(HEADER, ROWS) == {
    (0, 1): "best", (1, 1): "best", (2, 1): "second", (1, 2): "best", (0, 2): "second"
  }  # fmt: skip


def test_a_column_of_one_number_has_no_best():
  assert formats.marks(HEADER, ROWS[:2]) == {(1, 2): "best", (0, 2): "second"}


def test_markdown():
  text = formats.as_markdown(
    ["a", "b"], [["x|y", "1"], ["z", "2"]], {(1, 1): "best", (0, 1): "second"}
  )
  assert text.splitlines() == [
    "|    a |        b |",
    "|-----:|---------:|",
    "| x\\|y | <u>1</u> |",
    "|    z |    **2** |",
  ]


def test_csv():
  assert formats.as_csv(["a", "b"], [["x,y", "1"]]) == 'a,b\n"x,y",1\n'


def test_latex_escapes_and_marks():
  text = formats.as_latex(HEADER, ROWS[:2], {(0, 1): "best", (1, 1): "second"})
  assert text.splitlines() == [
    r"\begin{tabular}{lrrr}",
    r"  \toprule",
    r"  images & top-1 & head & seeds \\",
    r"  \midrule",
    r"  a\_b & \textbf{50.0 $\pm$ 1.0} & 9.5 & 3 \\",
    r"  50 \% & \underline{50.0} & 10.0 & 2 \\",
    r"  \bottomrule",
    r"\end{tabular}",
  ]
  assert formats.escape_latex("a\\b\n~^{}") == (
    r"a\textbackslash{}b\textbackslash{}n\textasciitilde{}\textasciicircum{}\{\}"
  )
