import numpy as np
import pytest

from sfumato.data import table
from sfumato.data.writing import write_csv


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


HOUSES = "area,rooms,city,price\n50,2,Oslo,1.5e3\n 80.5 ,3,Rome,-2000\n120,4,Oslo,3000\n"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_columns_are_features_and_one_is_the_label(tmp_path, suffix):
    path = write(tmp_path / f"houses{suffix}", HOUSES.replace(",", "\t") if suffix == ".tsv" else HOUSES)
    data = table(path, label="city")
    np.testing.assert_array_equal(data.values, [[50, 2, 1500], [80.5, 3, -2000], [120, 4, 3000]])
    assert (data.classes, data.name, data.shape) == (("Oslo", "Rome"), "houses", (3,))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0]
    x0 = data.batch(np.arange(3)).x
    np.testing.assert_allclose(x0.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x0.std(0, correction=0), 1, atol=1e-6)


def test_columns_are_chosen_by_name_and_order(tmp_path):
    data = table(write(tmp_path / "houses.csv", HOUSES), columns=["price", "area"])
    np.testing.assert_array_equal(data.values, np.array([[1500, 50], [-2000, 80.5], [3000, 120]], np.float32))
    assert data.labels is None


def test_whole_numbers_are_classes_in_their_own_order(tmp_path):
    data = table(write(tmp_path / "a.csv", "x,y\n1,10\n2,9\n3,-1\n"), label="y")
    assert data.classes == ("-1", "9", "10")


def test_quotes_marks_and_empty_lines(tmp_path):
    text = '\ufeff"a","b, c"\r\n"1",2\r\n\r\n3,"4"\r\n'
    np.testing.assert_array_equal(table(write(tmp_path / "a.csv", text)).values, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (HOUSES, {}, r"got 3 that do not: column 'city' has 'Oslo', 'Rome' in lines 2, 3, 4; correct them, choose other columns, or name"),
        ("a,b\n1,2\n3,\n", {}, "column 'b' has an empty cell in line 3; fill them, or drop their rows with --set data.missing=drop"),
        ("a,b\n1,2\n3,nan\n", {}, "column 'b' has 'nan' in line 3"),
        ("a,b\n-inf,2\n", {}, "column 'a' has '-inf' in line 2; correct them"),
        ("a,b\n1_000,2\n", {}, "column 'a' has '1_000' in line 2"),
        ("a,b\n1,2\n3\n", {}, "line 3: expected 2 cells as in the first line, got 1"),
        (HOUSES, {"label": "citty"}, r"has no column 'citty'; did you mean 'city'\?"),
        (HOUSES, {"columns": ["zzz"]}, "has no column 'zzz'; its columns are area, rooms, city, price"),
        (HOUSES, {"columns": ["area", "area"]}, "must be different columns"),
        (HOUSES, {"columns": ["area", "city"], "label": "city"}, "without the label"),
        ("a,k\n1,x\n2,\n", {"label": "k"}, "column 'k' has no label: an empty cell in line 3"),
        ("", {}, "must start with a line of column names"),
        ("a,b\n", {}, "has a line of names but no rows"),
        ("1,2\n3,4\n", {}, r"must start with a line of column names, got numbers \(1, 2\)"),
        ("a,a\n1,2\n", {}, "different names, got 'a' more than once"),
        ("a\n1e200\n-1e200\n", {}, "reach from -1e.200 to 1e.200, whose squares overflow"),
        pytest.param("a\n" + "1" * 200_000, {}, "line 2 is not CSV: field larger", id="long cell"),
    ],
)
def test_tables_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        table(write(tmp_path / "a.csv", text), **options)


def test_files_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        table(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"1" * (1 << 24))
    with pytest.raises(ValueError, match="has a line of more than"):
        table(tmp_path / "a.csv")


def test_every_missing_cell_is_named_at_once(tmp_path):
    rows = ["a,b,c", *(f"{'' if i % 3 == 0 else i},{'NaN' if i == 4 else i},{i}" for i in range(40))]
    first = "column 'a' has an empty cell in lines 2, 5, 8, 11, 14, 17, 20, 23 and 6 more"
    with pytest.raises(ValueError, match=f"got 15 that do not: {first}; column 'b' has 'NaN' in line 6;"):
        table(write(tmp_path / "a.csv", "\n".join(rows)))


def test_rows_with_missing_cells_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "a.csv", "a,k,b\n1,x,2\n,x,3\n4,y,NA\n5,,6\n7,y,nan\n8,y,9\n")
    data = table(path, label="k", missing="drop")
    np.testing.assert_array_equal(data.values, [[1, 2], [8, 9]])
    assert data.labels is not None
    assert [data.classes[label] for label in data.labels] == ["x", "y"]
    assert data.notes == ("a.csv: left out 4 of 6 rows with missing cells (data.missing=drop).",)
    with pytest.raises(ValueError, match="got 1 that do not: column 'b' has 'six' in line 3; correct them"):
        table(write(tmp_path / "b.csv", "a,b\n,2\n5,six\n"), missing="drop")
    with pytest.raises(ValueError, match=r"only rows with missing cells \(2\)"):
        table(write(tmp_path / "c.csv", "a,b\n,2\n5,\n"), missing="drop")


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a;b\n1,5;2\n-3,25;1e3\n", ("a", "b")),
        ('"a, of b";c\n1.5;2\n-3.25;1000\n', ("a, of b", "c")),
        ("a\tb\n1.5\t2\n-3.25\t1000\n", ("a", "b")),
    ],
)
def test_semicolons_and_tabs_part_cells_too(tmp_path, text, columns):
    data = table(write(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(data.values, [[1.5, 2], [-3.25, 1000]])
    assert data.columns == columns


def test_time_stamps_keep_their_digits(tmp_path):
    seconds = 1.7e9 + np.arange(0, 60, 0.25)
    data = table(write(tmp_path / "a.csv", "t\n" + "\n".join(map(repr, seconds.tolist()))))
    x0 = data.batch(np.arange(len(seconds))).x
    np.testing.assert_allclose(data.scaling.scale, seconds.std(), rtol=1e-9)
    np.testing.assert_allclose(np.diff(x0[:, 0].numpy()), 0.25 / seconds.std(), rtol=1e-3)
    np.testing.assert_allclose(data.scaling.decode(x0)[:, 0], seconds, rtol=0, atol=1e-5)


def test_a_table_of_samples_reads_back_as_it_was_drawn(tmp_path):
    data = table(write(tmp_path / "houses.csv", HOUSES), label="city")
    write_csv(tmp_path / "s.csv", data.values, data.labels, columns=data.columns, classes=data.classes, label=data.label)
    assert (tmp_path / "s.csv").read_text().splitlines()[:2] == ["area,rooms,price,city", "50.0,2.0,1500.0,Oslo"]
    again = table(tmp_path / "s.csv", label="city")
    assert again.fingerprint() == data.fingerprint()
    assert (again.columns, again.classes) == (data.columns, data.classes)
