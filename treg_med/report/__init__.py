"""HTML pages: of a prior's assessment (`html.render`) and of reconstructed volumes (`volume_page`)."""
