"""The embedded world: invented people with portraits and biographies, written as dataset folders shaped like CLEAR and TOFU."""
