"""Look at cases in a browser: images, predictions, references and errors, served to this machine.

`cases` finds out what there is to see, `server` hands it to the page in `page/`, and `niivue`
brings the library that draws volumes there.
"""
