"""The dashboard: any run of a directory of runs in the browser, live or finished. It only reads."""
