"""What a prior represents, denoises and understands, measured.

`build.build_report` measures everything, `card.record_understanding` writes it into the prior's card; `treg_med.report`
draws the page.
"""
