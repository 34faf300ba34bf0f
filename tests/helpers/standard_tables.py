"""Tables of the DICOM standard, from two packages, in the form that dicom-validator checks files by.

dicom-validator makes its own tables from the standard's DocBook files, which it downloads. These are the same tables
from what is installed: modules, attributes and types from highdicom, whose tables are of a current edition (they have
Synthetic Data, of 2023, and the General Acquisition Module); conditions and enumerated values from the texts of
dicom-standard 0.1.0, of April 2020, read by dicom-validator's own parsers. Not checked is thus

- a condition or enumerated value that is newer than 2020, or of an attribute that came or changed its type since;
- a condition that dicom-validator's parser does not read, such as one on the world ("if contrast was administered");
- an enumerated value that a text states in another section, such as those of Image Type.
"""

import json
from importlib import metadata, resources
from xml.etree import ElementTree

from dicom_validator.spec_reader.condition import ConditionType
from dicom_validator.spec_reader.condition_parser import ConditionParser
from dicom_validator.spec_reader.enum_parser import EnumParser
from dicom_validator.spec_reader.spec_reader import SpecReader
from dicom_validator.validator.dicom_info import DicomInfo
from pydicom.datadict import DicomDictionary, tag_for_keyword

NAMESPACE = EnumParser.docbook_ns


def dicom_info(sop_classes):
    """Return what dicom-validator's ``IODValidator`` needs to check files of these storage classes."""
    words = Words()
    classes, parts, attributes = (
        _table(f"{name}.json") for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    iods, modules = {}, {}
    for sop_class in sop_classes:
        name = classes[sop_class]
        used = {}
        for part in parts[name]:
            key = part["key"]
            used[key] = {"ref": key, "use": part["usage"], **words.of_module(name, key)}
            if key not in modules:
                modules[key] = _nested(key, attributes[key], words)
        iods[sop_class] = {"title": name, "modules": used, "group_macros": {}}
    return DicomInfo(words.dictionary, iods, modules)


class Words:
    """What the texts of the standard add to its tables: conditions, and enumerated values."""

    def __init__(self):
        self.dictionary = {
            _tag(number): {"name": name, "vr": vr, "vm": vm, "prop": retired}
            for number, (vr, vm, name, retired, _) in DicomDictionary.items()
        }
        self._conditions = ConditionParser(self.dictionary)
        self._enums = EnumParser(lambda name: None, self._conditions)
        self._known = {}
        self._of_attributes = {row["path"]: row for row in _texts("module_to_attributes.json")}
        self._of_modules = {
            (row["ciodId"], row["moduleId"]): row["conditionalStatement"]
            for row in _texts("ciod_to_modules.json")
            if row["conditionalStatement"]
        }

    def of_module(self, iod, key):
        """Return the condition under which a class has a module, as far as it can be read."""
        return self._condition(self._of_modules.get((iod, key), ""))

    def of_attribute(self, path, tag, kind):
        """Return condition and enumerated values of an attribute whose type is that of 2020."""
        row = self._of_attributes.get(path)
        if row is None or row["type"] != kind:
            return {}
        key = (row["description"], tag, kind)  # macros repeat most texts many times
        if key not in self._known:
            self._known[key] = self._parsed(*key)
        return self._known[key]

    def _parsed(self, text, tag, kind):
        cell = ElementTree.fromstring(text)
        found = self._condition(SpecReader._find_all_text(cell)) if kind in ("1C", "2C", "3") else {}
        enums = self._enums.parse(_docbook(cell), self.dictionary[tag]["vr"])
        own = [one for one in enums if one.pop("tag", tag) == tag]
        for one in own:
            if "cond" in one:
                one["cond"] = one["cond"].result_dict()
        return {**found, "enums": own} if own else found

    def _condition(self, text):
        condition = self._conditions.parse(text)
        return {} if condition.type == ConditionType.UserDefined else {"cond": condition.result_dict()}


def _nested(key, rows, words):
    """Return the attributes of a module by tag, those of sequences as ``items``."""
    places = {(): {}}
    for row in rows:
        number = tag_for_keyword(row["keyword"])
        if number is None or tuple(row["path"]) not in places:
            continue  # of a repeating group, such as overlays
        tag, inner = _tag(number), (*row["path"], row["keyword"])
        path = ":".join([key, *(f"{tag_for_keyword(keyword):08x}" for keyword in inner)])
        made = {"name": words.dictionary[tag]["name"], "type": row["type"]}
        made.update(words.of_attribute(path, tag, row["type"]))
        if words.dictionary[tag]["vr"] == "SQ":
            places[inner] = made["items"] = {}
        places[tuple(row["path"])][tag] = made
    return places[()]


def _docbook(cell):
    """Return the lists of a text in HTML as the elements in which DocBook has them."""
    made = ElementTree.Element(f"{NAMESPACE}td")
    for block in cell.findall("div"):
        title = block.find("p/strong")
        if title is None:
            continue
        values = ElementTree.SubElement(made, f"{NAMESPACE}variablelist")
        ElementTree.SubElement(values, f"{NAMESPACE}title").text = " ".join("".join(title.itertext()).split())
        for term in block.findall("dl/dt"):
            entry = ElementTree.SubElement(values, f"{NAMESPACE}varlistentry")
            ElementTree.SubElement(entry, f"{NAMESPACE}term").text = "".join(term.itertext()).strip()
    return made


def _tag(number):
    return f"({number >> 16:04X},{number & 0xFFFF:04X})"


def _table(name):
    return json.loads((resources.files("highdicom") / "_standard" / name).read_text(encoding="utf-8"))


def _texts(name):
    (file,) = (file for file in metadata.files("dicom-standard") if file.name == name)
    return json.loads(file.locate().read_text(encoding="utf-8"))
