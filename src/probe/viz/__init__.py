"""Result → plotly figure; tokens → safe HTML. A figure never computes a statistic."""
