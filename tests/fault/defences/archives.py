"""Archives, configurations and converted models: hostile or damaged."""

from tests.fault.defences.defence import Defence, defence

_ENGINE = "server/engine/"

ARCHIVES: dict[str, tuple[Defence, ...]] = {
    "a checkpoint that runs code": (
        defence(
            "the unpickler knows only what tensors need",
            "convert/checkpoint.py",
            "fault/test_archives.py::test_a_pickle_that_would_run_code_is_rejected_and_runs_nothing",
            'raise _Refused(f"{module}.{name}")',
            "return super().find_class(module, name)",
        ),
        defence(
            "torch from 2.10",
            "pyproject.toml",
            "unit/test_constraints.py::test_versions_with_known_vulnerabilities_are_not_installed",
            '    "torch>=2.10,',
            '    "torch>=2.5,',
        ),
    ),
    "a configuration that runs code": (
        defence(
            "YAML is read as plain values",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_yaml_tag_that_would_construct_an_object_is_rejected_and_runs_nothing",
            "yaml.safe_load(",
            "yaml.unsafe_load(",
        ),
        defence(
            "no target in it is called",
            "convert/nemo.py",
            "fault/test_archives.py::test_targets_in_the_configuration_are_never_called",
            "        return values\n\n    def read(",
            '        if target := (values.get("encoder") or {}).get("_target_"):\n'
            "            eval(target, {module.__name__: module for module in (__import__(target.split('.')[0]),)})()\n"
            "        return values\n\n    def read(",
        ),
    ),
    "a configuration of other types": (
        defence(
            "sections of NeMo's configuration",
            "convert/nemo.py",
            "fault/test_configurations.py::test_a_section_of_nemos_configuration_that_is_something_else_is_named",
            "for key in SECTIONS:",
            "for key in ():",
        ),
        defence(
            "sections of a converted configuration",
            "model/config.py",
            "fault/test_configurations.py::test_a_section_of_a_converted_configuration_that_is_something_else_is_named",
            '            if not isinstance(value, dict):\n                raise ConfigError(f"{prefix}{field.name}',
            '            if False:\n                raise ConfigError(f"{prefix}{field.name}',
        ),
    ),
    "an archive that writes outside its folder": (
        defence(
            "no member outside the archive",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_member_that_points_outside_the_archive_is_rejected",
            'if path.is_absolute() or ".." in path.parts:',
            "if False:",
        ),
        defence(
            "no links and no devices",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_link_or_device_is_rejected",
            "if not member.isreg() or member.issparse():",
            "if False:",
        ),
        defence(
            "no name twice",
            "convert/nemo.py",
            "fault/test_archives.py::test_a_duplicate_name_is_rejected_even_if_it_is_spelled_differently",
            "if str(path) in members:",
            "if False:",
        ),
        defence(
            "a gzipped archive is unzipped up to a limit",
            "convert/nemo.py",
            "fault/test_archives.py::test_unzipping_a_gzip_bomb_stops_at_the_limit",
            "if plain.tell() > MAX_UNZIPPED_BYTES:",
            "if False:",
        ),
    ),
    "a tokenizer that corrupts memory": (
        defence(
            "SentencePiece from 0.2.1",
            "pyproject.toml",
            "unit/test_constraints.py::test_versions_with_known_vulnerabilities_are_not_installed",
            '"sentencepiece>=0.2.1"',
            '"sentencepiece>=0.2"',
        ),
    ),
    "a flipped bit in the weights": (
        defence(
            "small files' digests are checked",
            "model/digests.py",
            "fault/test_damage.py::test_a_folder_with_a_damaged_file_is_refused_in_one_line_that_names_the_file",
            " or first_damage(folder, small):",
            ":",
        ),
        defence(
            "large files' digests are checked",
            "model/digests.py",
            "fault/test_damage.py::test_damage_to_a_large_file_is_found_while_the_model_is_being_loaded",
            "pool.submit(first_damage, folder, large)",
            "pool.submit(first_damage, folder, {})",
        ),
        defence(
            "a damaged model in the cache is converted again",
            _ENGINE + "registry.py",
            "fault/test_damage.py::test_a_damaged_model_in_the_cache_is_converted_again",
            "    except DamagedError as error:\n",
            "    except ZeroDivisionError as error:\n",
        ),
    ),
}
