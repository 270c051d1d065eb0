"""Publish a converted folder on the Hugging Face Hub."""

from pathlib import Path

from convert.download import hub_name, known_model
from convert.errors import HubError

# The Hub's tag for a licence that is not in its list.
OTHER_LICENCE = "other"

CARD = """---
license: {tag}
library_name: mlx
pipeline_tag: automatic-speech-recognition
{base_model}---

# {title}

{source}, converted from its `.nemo` archive for MLX: `config.json`, `model.safetensors` and the SentencePiece files.

Licence: {licence}. The source's licence also applies to these converted weights.
"""


def upload(folder: Path, repo: str, source: str) -> None:
    """Create the repository if needed and upload the folder with a model card. Raises HubError."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_file(path_or_fileobj=model_card(repo, source).encode(), path_in_repo="README.md", repo_id=repo)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload converted model")
    except Exception as error:  # the HTTP library behind the client raises its own errors
        detail = " ".join(str(error).split())[:200]
        raise HubError(
            f"{folder} was converted but could not be uploaded to {repo} ({detail}): "
            "check the name, and log in with `hf auth login` using a token with write access"
        ) from None


def model_card(repo: str, source: str) -> str:
    """README.md for the Hub, naming the source and its licence."""
    named, model = hub_name(source), known_model(source)
    origin = named[0] if named else ""
    return CARD.format(
        tag=model.licence.split()[0].lower() if model else OTHER_LICENCE,
        base_model=f"base_model: {origin}\n" if origin else "",
        title=repo.rpartition("/")[2],
        source=f"[{origin}](https://huggingface.co/{origin})" if origin else f"`{Path(source).name}`",
        licence=model.licence if model else "as stated by the source",
    )
