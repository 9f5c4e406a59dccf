"""The paper's tables and figures from records of finished runs, beside what it printed.

:mod:`rows <hipnn_pyg.reproduce.rows>` (experiments) and
:mod:`records <hipnn_pyg.reproduce.records>` (finished runs) go into :mod:`tables
<hipnn_pyg.reproduce.tables>`, :mod:`figures <hipnn_pyg.reproduce.figures>`, :mod:`curves
<hipnn_pyg.reproduce.curves>` and :mod:`ablation <hipnn_pyg.reproduce.ablation>`; each gives a
:class:`~hipnn_pyg.reproduce.report.Report`. Nothing in here trains: ``hipnn reproduce`` does.
"""
