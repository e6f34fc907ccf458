"""What a template may call: the methods and filters whose work ``bounds.py`` can foresee."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


METHODS = _names(
    "as_integer_ratio bit_count bit_length capitalize casefold center conjugate copy count decode "
    "denominator difference encode endswith expandtabs find format format_map fromkeys get hex "
    "imag index intersection is_integer isalnum isalpha isascii isdecimal isdigit isdisjoint "
    "isidentifier islower isnumeric isprintable isspace issubset issuperset istitle isupper items "
    "join keys ljust lower lstrip maketrans numerator partition real removeprefix removesuffix "
    "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip "
    "swapcase symmetric_difference title to_bytes translate union upper values zfill"
)
FILTERS = _names(
    "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float "
    "forceescape format groupby indent int items join last length list lower map max min reject "
    "rejectattr replace reverse round safe select selectattr slice sort string sum title trim "
    "truncate unique upper urlencode wordcount xmlattr"
)
# Filters that hand on what they are given, or make their text by operations that say what of it is
# quoted (``quotation.py``).
TRACKED = _names(
    "attr batch capitalize d default dictsort first format groupby items join last list lower map "
    "max min reject rejectattr replace reverse safe select selectattr slice sort string trim "
    "truncate unique upper"
)
# What these make or look at does not grow with their arguments.
LINEAR = _names(
    "attr d default difference endswith get intersection isdisjoint issubset issuperset map reject "
    "rejectattr select selectattr startswith symmetric_difference union"
)
# These read an iterator, or a range, to its end.
READING = _names(
    "batch difference fromkeys groupby intersection isdisjoint issubset issuperset join list max "
    "min reverse slice sort sum symmetric_difference union unique"
)
# Whose codecs take no longer than the text is long; the others are looked up by any name.
ENCODINGS = _names("ascii latin-1 utf-8 utf-16 utf-16-be utf-16-le utf-32 utf-32-be utf-32-le")
CODEC_ERRORS = _names("backslashreplace ignore replace strict xmlcharrefreplace")
