import numpy as np
import pytest

from sfumato.data import table


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


HOUSES = "area,rooms,city,price\n50,2,Oslo,1.5e3\n 80.5 ,3,Rome,-2000\n120,4,Oslo,3000\n"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_columns_are_features_and_one_is_the_label(tmp_path, suffix):
    path = write(tmp_path / f"houses{suffix}", HOUSES.replace(",", "\t") if suffix == ".tsv" else HOUSES)
    data = table(path, label="city")
    np.testing.assert_array_equal(data.values, np.array([[50, 2, 1500], [80.5, 3, -2000], [120, 4, 3000]], np.float32))
    assert (data.classes, data.name, data.shape) == (("Oslo", "Rome"), "houses", (3,))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0]
    x0, _ = data.batch(np.arange(3))
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
        (HOUSES, {}, r"line 2: column 'city' must hold finite numbers, got 'Oslo'; fill it, remove the row, or choose other columns"),
        ("a,b\n1,2\n3,\n", {}, "line 3: column 'b' must hold finite numbers, got an empty cell"),
        ("a,b\n1,2\n3,nan\n", {}, "line 3: column 'b' must hold finite numbers, got 'nan'"),
        ("a,b\n-inf,2\n", {}, "line 2: column 'a' must hold finite numbers, got '-inf'"),
        ("a,b\n1_000,2\n", {}, "column 'a' must hold finite numbers, got '1_000'"),
        ("a,b\n1,2\n3\n", {}, "line 3: expected 2 cells as in the first line, got 1"),
        (HOUSES, {"label": "citty"}, r"has no column 'citty'; did you mean 'city'\?"),
        (HOUSES, {"columns": ["zzz"]}, "has no column 'zzz'; its columns are area, rooms, city, price"),
        (HOUSES, {"columns": ["area", "area"]}, "different columns as features"),
        (HOUSES, {"columns": ["area", "city"], "label": "city"}, "without the label"),
        ("a,k\n1,x\n2,\n", {"label": "k"}, "line 3: column 'k' has no label"),
        ("", {}, "must begin with a line that names its columns"),
        ("a,b\n", {}, "has a line of names but no rows"),
        ("1,2\n3,4\n", {}, r"must begin with a line that names its columns, got numbers \(1, 2\)"),
        ("a,a\n1,2\n", {}, "different names, got 'a' more than once"),
        ("a\n1e60\n", {}, "NaN or infinity from row 0"),
        pytest.param("a\n" + "1" * 200_000, {}, "line 2 is no CSV: field larger", id="long cell"),
    ],
)
def test_tables_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        table(write(tmp_path / "a.csv", text), **options)


def test_files_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        table(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"1" * (1 << 24))
    with pytest.raises(ValueError, match="has a line of more than"):
        table(tmp_path / "a.csv")
