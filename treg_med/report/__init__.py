"""What a prior understands, measured: a model card with pictures, and the numbers beside it.

`build.build_report` measures, `html.render` draws the page, `card.record_understanding` writes into the prior's card.
"""
