(function(){var d=document.documentElement,t=null;d.classList.add("js");try{t=localStorage.getItem("moe-advisor-theme")}catch(e){}if(t==="light"||t==="dark")d.setAttribute("data-theme",t)})();
