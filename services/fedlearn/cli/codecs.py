"""The options by which a task says how models and updates travel; docs/codecs.md compares them."""

from typing import Annotated

import typer

CodecOption = Annotated[str, typer.Option("--codec", help="How updates travel: float32, float16, int8 or top_k.")]
KeepOption = Annotated[
    float | None,
    typer.Option(
        "--keep-fraction", help="With top_k: how much of an update is sent at once. Default: 0.01.", show_default=False
    ),
]
ModelEncodingOption = Annotated[
    str, typer.Option("--model-encoding", help="How the model travels to devices: float32 or float16.")
]
