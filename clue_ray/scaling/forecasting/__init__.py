"""Forecast the loss of a larger run, with an interval calibrated by backtest."""
