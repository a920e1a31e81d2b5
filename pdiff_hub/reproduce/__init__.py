"""The paper's tables and figures, measured again, beside the published figures."""
