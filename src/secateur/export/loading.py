"""What a card says of a folder that needs `modeling_secateur.py`."""

from ..modeling_secateur import RANGE


def about_custom(why: str, *, packed: bool = False) -> list[str]:
    """Lines of Markdown: why the stock class does not load it, and what other readers should know.

    `why` is empty for a stock checkpoint, of which there is nothing to say.
    """
    if not why:
        return []
    peft = "" if packed else ", PEFT without `target_modules`"
    lines = [
        f"It is no stock checkpoint because {why}. `AutoModel`{peft} and, where the family has one,"
        " `AutoModelForSequenceClassification` work as for the stock class. The file runs on"
        f" {RANGE}.",
        "",
        "`config.per_layer_config[i]` has the sizes of layer `i`. What is read without a layer, as"
        " `config.num_key_value_heads`, is a number that no layer exceeds: enough for a cache of"
        " keys and values, but not the size of each.",
        "",
    ]
    if packed:
        lines += [
            "Its linears hold few bits, which PEFT cannot adapt: `secateur convert DIR --out PLAIN`"
            " writes floating-point weights that it can.",
            "",
        ]
    return lines
