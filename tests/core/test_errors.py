import pickle

from imprint.core.errors import BadImage, MissingExtra, nearest, unknown


def test_nearest_survives_case_and_dashes():
    assert nearest("Student-Temp", ["student_temp", "teacher_temp"]) == "student_temp"
    assert nearest("zzz", ["student_temp"]) is None


def test_unknown_names_the_nearest_and_the_known():
    message = str(unknown("method", "simcrl", ["dino", "mae", "simclr"]))
    assert "Did you mean 'simclr'" in message and "dino, mae, simclr" in message


def test_bad_image_crosses_processes():
    error = pickle.loads(pickle.dumps(BadImage("truncated", "12 of 40 rows")))
    assert (error.reason, error.detail) == ("truncated", "12 of 40 rows")


def test_missing_extra_says_what_to_install():
    assert "pip install 'imprint[export]'" in str(MissingExtra("onnx", "export", "ONNX export"))
